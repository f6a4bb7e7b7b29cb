"""Sampling from Python, with the arguments of diffusers' `PNDMPipeline`; diffusers itself is not needed.

from pndm import PNDMPipeline
pipeline = PNDMPipeline.from_pretrained("digits.yml")
images = pipeline(batch_size=16, num_inference_steps=20).images
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image

from pndm.config.errors import InputError
from pndm.config.load import load, validate
from pndm.dataset import to_unit
from pndm.model import checkpoint, diffusers, load_model
from pndm.model.engine import Engine, resolve
from pndm.runner.build import checkpoint_path, schedule_of
from pndm.runner.folder import to_image
from pndm.runner.solver.events import NotFinite
from pndm.runner.solver.schedule import Schedule, eps_from
from pndm.runner.solver.solve import solve, whole

OUTPUT_TYPES = ("pil", "np", "pt")
SECTIONS = {"Schedule", "Dataset", "Model"}  # of an experiment, that a pipeline is made of


class PipelineOutput(NamedTuple):
    """images: a list of n PIL images, an array (n, H, W, C) or a tensor (n, C, H, W), the latter two in [0, 1]."""

    images: list[Image] | np.ndarray | torch.Tensor


class PNDMPipeline:
    """A network, its noise schedule and what its images look like; called, it samples by `runner.method.solve`.

    network(x, t): x (n, C, H, W), t (n,) in training steps; returns ε like x, or what `prediction` names:
    "v_prediction" or "sample" (`runner.schedule.eps_from`). shape: (C, H, W). decode: from the network's x to [0, 1];
    default from [−1, 1].
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        schedule: Schedule,
        shape: tuple[int, int, int],
        decode: Callable[[torch.Tensor], torch.Tensor] = lambda x: ((x + 1) / 2).clamp(0, 1),
        prediction: str = "epsilon",
        device: str | torch.device = "cpu",
    ) -> None:
        self.network, self.schedule, self.shape, self.decode = network, schedule, shape, decode
        self.prediction, self.device = prediction, _device(device)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        config: str | Path | dict[str, Any] | None = None,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
    ) -> "PNDMPipeline":
        """A pipeline from what is at `source`: whatever `--model_path` takes, or an experiment (NAME.yml), whose
        checkpoint is loaded then.

        config: the experiment (NAME.yml or a dict of its sections) for a checkpoint that does not say its schedule
        and image size. The folder of a diffusers pipeline says them, and so do this project's training files.
        precision: of the network, as of `--precision`: "fp32", "tf32", "bf16", or "auto", which PF is not to be run in.
        Raises InputError (a ValueError).
        """
        where = _device(device)

        def engine(network):
            return Engine(network.float(), where, resolve(precision, where))

        experiment = None
        if not isinstance(source, (str, Path)):
            raise InputError(f"from_pretrained takes a path or a name, not {source!r}")
        if Path(source).suffix in (".yml", ".yaml"):
            if config is not None:
                raise InputError(f"{source} is an experiment and takes no config; config is for a checkpoint")
            experiment = load(str(source))
            source = experiment.Sample.model_path
        elif config is not None:
            experiment = validate(config, "config") if isinstance(config, dict) else load(str(config))
        weights = checkpoint.read(checkpoint_path(source and str(source)))
        if experiment is None and weights.record.keys() >= SECTIONS:
            experiment = validate({name: weights.record[name] for name in SECTIONS}, source)
        training = diffusers.training_of(weights.path)
        prediction = training.prediction if training else "epsilon"
        if experiment is not None:
            data, schedule = experiment.Dataset, schedule_of(experiment)
            network = engine(load_model(experiment.Model, weights))
            shape = (data.channels, data.image_size, data.image_size)
            return cls(network, schedule, shape, partial(to_unit, section=data), prediction, device)
        if training is None or training.size is None:
            raise InputError(f"{source}: does not say its noise schedule and image size; config= must, as NAME.yml")
        network = load_model(None, weights)
        shape, schedule = (network.settings.in_channels, *training.size), Schedule(**training.schedule)
        return cls(engine(network), schedule, shape, prediction=prediction, device=device)

    def to(self, device: str | torch.device) -> "PNDMPipeline":
        """Move the network, and with it the work, to a device; returns this pipeline."""
        self.device = _device(device)
        if isinstance(self.network, (torch.nn.Module, Engine)):
            self.network.to(self.device)
        return self

    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        method: str = "F-PNDM",
        callback: Callable[[int, Any, torch.Tensor], Any] | None = None,
        **options: Any,
    ) -> PipelineOutput | tuple[Any]:
        """Sample `batch_size` images; their noise is PyTorch's, from `generator` or one generator for each image.

        method, num_inference_steps and options (profile, rtol, …) are those of `runner.method.solve`. output_type:
        "pil", "np" or "pt", see `PipelineOutput`; without return_dict, a tuple of the images alone.
        callback(step, t, x) is called after every step, step = 0, 1, …, x (n, C, H, W) as the network sees it.

        Raises ValueError on other arguments, before the network is called, and NotFinite if it returns NaN or infinity.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
        if callback is not None and not callable(callback):
            raise ValueError(f"callback is {callback!r}, it must be a function of step, t and x")
        n = whole("batch_size", batch_size)
        x = self._noise(n, generator)
        options = {"noise": lambda step: self._noise(n, generator), **options}
        with torch.no_grad():
            for step, state in enumerate(solve(method, self._eps, x, self.schedule, num_inference_steps, **options)):
                if callback:
                    callback(step, state.t, state.x)
        if not state.x.isfinite().all():
            raise NotFinite(f"the network returned NaN or infinity, with {method} in {num_inference_steps} steps")
        images = _output(self.decode(state.x), output_type)
        return PipelineOutput(images) if return_dict else (images,)

    def _eps(self, x, t):
        output = self.network(x, t)
        if self.prediction == "epsilon":
            return output
        alpha = x.new_tensor(self.schedule.alpha_cumprod(t.cpu().double().numpy()))
        return eps_from(output, x, alpha.reshape(-1, *[1] * (x.ndim - 1)), self.prediction)

    def _noise(self, n, generator):
        if n < 1:
            raise ValueError(f"batch_size is {n}, it must be at least 1")
        several = isinstance(generator, (list, tuple))
        given = generator if several else [generator] * (generator is not None)
        if not all(isinstance(one, torch.Generator) for one in given):
            raise ValueError("generator must be a torch.Generator, or a list of one for each image")
        if several and len(given) != n:
            raise ValueError(f"generator has {len(given)} for {n} images")
        return torch.cat([self._draw(1, one) for one in given]) if several else self._draw(n, generator)

    def _draw(self, n, generator):
        where = self.device if generator is None else generator.device
        return torch.randn(n, *self.shape, generator=generator, device=where).to(self.device)


def _device(name):
    try:
        return torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"device {name!r} is none of PyTorch's; cpu, cuda, cuda:1, mps are, say") from None


def _output(images, kind):
    """Images (n, C, H, W) in [0, 1] as `PipelineOutput` has them."""
    if kind == "pil":
        return [to_image(image) for image in (images * 255).round().to(torch.uint8).cpu()]
    return images.permute(0, 2, 3, 1).cpu().numpy() if kind == "np" else images
