"""Sampling from Python, with the arguments of diffusers' `PNDMPipeline`; diffusers itself is not needed.

from pndm import PNDMPipeline
pipeline = PNDMPipeline.from_pretrained("digits.yml")
images = pipeline(batch_size=16, num_inference_steps=20).images
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from pndm.config.errors import InputError
from pndm.config.load import load, load_solver, validate
from pndm.config.schema import OF_A_NETWORK, Experiment
from pndm.dataset import to_picture, to_unit
from pndm.model import checkpoint, diffusers, load_model
from pndm.model.engine import Engine, resolve
from pndm.model.machine import device_of
from pndm.model.trained import check_training
from pndm.runner.build import checkpoint_path, schedule_of
from pndm.runner.fetch import refuse_place
from pndm.runner.solver.events import NotFinite
from pndm.runner.solver.schedule import Schedule, eps_from
from pndm.runner.solver.sigma import SigmaSchedule
from pndm.runner.solver.solve import like, nothing, solve, trajectory, whole

OUTPUT_TYPES = ("pil", "np", "pt")
PREDICTED = ("epsilon", "v_prediction", "sample")

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
Network: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PipelineOutput(NamedTuple):
    """images: a list of n PIL images; or an array (n, H, W, C) or a tensor (n, C, H, W), both in [0, 1].

    Example:

        >>> from pndm import PNDMPipeline
        >>> pipeline = PNDMPipeline.from_pretrained("digits.yml")
        >>> pipeline(batch_size=2, num_inference_steps=5, output_type="np").images.shape
        (2, 8, 8, 1)
    """

    images: list[Image] | NDArray[np.float32] | torch.Tensor


class PNDMPipeline:
    """A network, its noise schedule, and what its images look like. Call it to sample; it runs `solve`.

    network(x, t): x (n, C, H, W), t (n,) in training steps. It returns ε like x, or what `prediction` names:
        "v_prediction" or "sample".
    schedule: the `Schedule` that the network was trained with.
    shape: (C, H, W) of the images.
    decode: from the network's x to images in [0, 1]; by default from [−1, 1].
    device: where the noise goes and the work is done. Raises ValueError if PyTorch cannot use it, and for another
        prediction.

        >>> from pndm import PNDMPipeline
        >>> pipeline = PNDMPipeline.from_pretrained("digits.yml")
        >>> images = pipeline(batch_size=4, num_inference_steps=10, method="F-PNDM").images
        >>> len(images), images[0].size
        (4, (8, 8))
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        shape: tuple[int, int, int],
        decode: Callable[[torch.Tensor], torch.Tensor] = lambda x: ((x + 1) / 2).clamp(0, 1),
        prediction: str = "epsilon",
        device: str | torch.device = "cpu",
    ) -> None:
        if prediction not in PREDICTED:
            raise ValueError(f"prediction {prediction!r} is not one of {', '.join(PREDICTED)}")
        self.network, self.schedule, self.shape, self.decode = network, schedule, shape, decode
        self.prediction, self.device = prediction, device_of(device)
        self.digest: str | None = None  # sha256 of the network's file, if there is one

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        config: str | Path | dict[str, Any] | Experiment | None = None,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
    ) -> "PNDMPipeline":
        """A pipeline from an experiment (NAME.yml), or from a checkpoint: a file, a folder, or a name on the hub.

        config: for a checkpoint that does not say its schedule and image size, the experiment that does: NAME.yml, a
        dict of its sections, or what `load_experiment` returned. Folders of diffusers say them, and so do this
        project's training files; an experiment that contradicts them is refused.
        precision: of the network: "fp32", "tf32", "bf16" or "auto" (bf16 where it is fast). PF needs "fp32".
        Raises InputError (a ValueError).
        """
        where = device_of(device)
        if not isinstance(source, (str, Path)):
            raise InputError(f"from_pretrained takes a path or a name, not {source!r}")
        experiment, path = _experiment(source, config)
        weights = checkpoint.read(checkpoint_path(path))
        if experiment is None and all(name in weights.record for name in OF_A_NETWORK):
            experiment = validate({name: weights.record[name] for name in OF_A_NETWORK}, source)
        training = diffusers.training_of(weights.path)
        prediction = training.prediction if training else "epsilon"
        given = experiment and schedule_of(experiment)
        if experiment is not None:
            check_training(weights, experiment, given)
        network = load_model(experiment and experiment.Model, weights, schedule=given).float()
        if experiment is not None:
            shape, schedule = experiment.Dataset.shape, given
            decoded: dict[str, Any] = {"decode": partial(to_unit, section=experiment.Dataset)}
        elif training is not None and training.size is not None:
            shape, schedule = (network.settings.in_channels, *training.size), training.noise
            decoded = {}
        else:
            raise InputError(f"{source}: does not say its noise schedule and image size; give them as config=NAME.yml")
        engine = Engine(network, where, resolve(precision, where))
        pipeline = cls(engine, schedule, shape, prediction=prediction, device=where, **decoded)
        pipeline.digest = checkpoint.sha256(weights.path)
        return pipeline

    def to(self, device: str | torch.device) -> "PNDMPipeline":
        """Move the network, and with it the work, to a device. Returns this pipeline."""
        self.device = device_of(device)
        if isinstance(self.network, (torch.nn.Module, Engine)):
            self.network.to(self.device)
        return self

    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        method: str = "F-PNDM",
        callback: Callable[[int, Any, torch.Tensor], Any] | None = None,
        solver: str | Path | dict[str, Any] | None = None,
        any_network: bool = False,
        **options: Any,
    ) -> PipelineOutput | tuple[Any]:
        """Sample `batch_size` images.

        generator: of the noise, one for all images or one for each; None: PyTorch's default generator. On EDM's levels
            the images start from σ · noise, not from standard normal x.
        output_type: "pil", "np" or "pt", see `PipelineOutput`. return_dict: if False, a tuple of the images alone.
        callback(step, t, x): called after every step = 0, 1, …; x (n, C, H, W) as the network sees it.
        method, num_inference_steps, options (profile, spacing, rtol, …): those of `solve`.
        solver: in place of these, a solver file of `--runner search`: a path, a name in config/solvers, or its mapping.
        any_network: take it though it was searched on another network.

        Raises ValueError for other arguments, before the network is called; NotFinite if it returns NaN or infinity.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
        if callback is not None and not callable(callback):
            raise ValueError(f"callback is {callback!r}, it must be a function of step, t and x")
        for name in options:
            if name in ("network", "x", "schedule", "steps"):  # arguments of `solve` that are given by the pipeline
                raise ValueError(f"the pipeline takes no {name}; num_inference_steps says the steps")
        if options.get("profile") == "published" and self.prediction != "epsilon":
            raise ValueError(
                f"profile 'published' needs a network that predicts epsilon; this predicts {self.prediction}"
            )
        n, num_inference_steps = whole("batch_size", batch_size), whole("num_inference_steps", num_inference_steps)
        line: Any = method
        if solver is not None:
            line, num_inference_steps, options = self._searched(solver, any_network, method, options)
        x = self._noise(n, generator)
        if isinstance(self.schedule, SigmaSchedule):  # EDM's images start from σ · noise, here over √(1+σ²)
            how = {name: value for name, value in options.items() if name != "noise"}
            begins: Any = next(trajectory(line, nothing(), self.schedule, num_inference_steps, **how))
            x = x * (1 - self.schedule.alpha_cumprod(float(np.max(begins.level)))) ** 0.5
        options = {"noise": lambda step: self._noise(n, generator), **options}
        network = self.network if self.prediction == "epsilon" else self._eps
        with torch.no_grad():
            for step, state in enumerate(solve(line, network, x, self.schedule, num_inference_steps, **options)):
                if callback:
                    callback(step, state.t, state.x)
        if not state.x.isfinite().all():
            raise NotFinite(
                f"the network returned NaN or infinity, with {solver or method} in {num_inference_steps} steps"
            )
        images = _output(self.decode(state.x), output_type)
        return PipelineOutput(images) if return_dict else (images,)

    def _searched(
        self, solver: Any, any_network: bool, method: Any, options: dict[str, Any]
    ) -> tuple[Any, int, dict[str, Any]]:
        """What a solver file says: method, steps and options of `solve`. Raises InputError (a ValueError)."""
        if options:
            raise InputError(
                f"a solver file says the method and its times; {', '.join(options)} cannot be given with it"
            )
        if method != "F-PNDM":  # the default
            raise InputError(f"a solver file says the method; {method!r} cannot be given with it")
        if self.prediction != "epsilon":
            raise InputError(
                f"a solver file is of a network that predicts epsilon, this one predicts {self.prediction}; "
                "MethodScheduler takes both"
            )
        found, name = load_solver(solver), "solver" if isinstance(solver, dict) else str(solver)
        found.check_schedule(self.schedule, name)
        if self.digest is not None and not any_network:
            found.check_network(self.digest, name, "any_network=True takes it all the same")
        return found.line, len(found.times) - 1, {"times": found.times}

    def _eps(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """ε of a network that predicts something else."""
        alpha = self.schedule.alpha_cumprod(t.cpu().double().numpy())
        a, b = (x.new_tensor(value).reshape(-1, *[1] * (x.ndim - 1)) for value in (alpha**0.5, (1 - alpha) ** 0.5))
        eps: torch.Tensor = eps_from(like(x, self.network(x, t), "the network returned"), x, a, b, self.prediction)
        return eps

    def _noise(self, n: int, generator: Generators) -> torch.Tensor:
        """Standard normal noise (n, C, H, W) on the pipeline's device. Raises ValueError."""
        if n < 1:
            raise ValueError(f"batch_size is {n}, it must be at least 1")
        if generator is None or isinstance(generator, torch.Generator):
            return self._draw(n, generator)
        if not isinstance(generator, (list, tuple)) or not all(isinstance(g, torch.Generator) for g in generator):
            raise ValueError("generator must be a torch.Generator, or a list of one for each image")
        if len(generator) != n:
            raise ValueError(f"generator has {len(generator)} for {n} images")
        return torch.cat([self._draw(1, one) for one in generator])

    def _draw(self, n: int, generator: torch.Generator | None) -> torch.Tensor:
        where = self.device if generator is None else generator.device
        return torch.randn(n, *self.shape, generator=generator, device=where).to(self.device)


def _experiment(source: str | Path, config: str | Path | dict[str, Any] | Experiment | None) -> tuple[Any, str]:
    """The experiment, None where none is given, and the checkpoint that belongs to `source`."""
    if Path(source).suffix in (".yml", ".yaml"):
        if config is not None:
            raise InputError(f"{source} is an experiment and takes no config; config is for a checkpoint")
        experiment = load(str(source))
        return experiment, experiment.Sample.model_path
    refuse_place(source, "model_path")
    if config is None or isinstance(config, Experiment):
        return config, str(source)
    return validate(config, "config") if isinstance(config, dict) else load(str(config)), str(source)


def _output(images: torch.Tensor, kind: str) -> Any:
    """Images (n, C, H, W) in [0, 1] as `PipelineOutput` has them."""
    if kind == "pil":
        return [to_picture(image) for image in (images * 255).round().to(torch.uint8).cpu()]
    return images.permute(0, 2, 3, 1).cpu().numpy() if kind == "np" else images
