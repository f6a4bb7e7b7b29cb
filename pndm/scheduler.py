"""The methods as a scheduler of diffusers, for any of its pipelines. Two lines:

    from pndm import MethodScheduler
    pipeline.scheduler = MethodScheduler.from_config(pipeline.scheduler.config, method="F-PNDM")

The only module that needs diffusers. A method is a generator that asks for ε (`runner.method`), and here a pipeline
answers, one network call a `step`.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch

from pndm.model.diffusers import BETAS
from pndm.runner.solver.events import Draw, Step
from pndm.runner.solver.grid import floats, grid_of, uniform
from pndm.runner.solver.methods import METHODS, method_named
from pndm.runner.solver.schedule import PREDICTIONS, Schedule, eps_from
from pndm.runner.solver.solve import calls, nothing, resume, whole

try:
    from diffusers import ConfigMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config as registered
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor
except ModuleNotFoundError as error:
    if error.name != "diffusers":
        raise
    raise ImportError("MethodScheduler needs diffusers, which is not installed: pip install diffusers") from None

_Init = TypeVar("_Init", bound=Callable[..., None])


def register_to_config(init: _Init) -> _Init:
    """diffusers' decorator, which keeps the arguments as `.config`; typed, as it is not there."""
    return registered(init)


# The times of n steps out of N: `solve`'s own, and diffusers' three (Lin et al. 2023, Table 2), rounded as there.
SPACINGS = {
    "uniform": uniform,
    "leading": lambda n, schedule: [k * (schedule.diffusion_step // n) for k in reversed(range(n))],
    "trailing": lambda n, schedule: (np.arange(N := schedule.diffusion_step, 0, -N / n)[:n].round() - 1).tolist(),
    "linspace": lambda n, schedule: np.linspace(0, schedule.diffusion_step - 1, n).round()[::-1].tolist(),
}


class MethodScheduler(SchedulerMixin, ConfigMixin):
    """A method of `runner.method` in a diffusers pipeline: the states are those of `solve` on the same grid.

    method: a name in `METHODS`, but PF, whose network calls cannot be listed in advance.
    num_train_timesteps, beta_start, beta_end, beta_schedule (linear, scaled_linear, squaredcos_cap_v2),
    trained_betas (in place of these), prediction_type (epsilon, v_prediction, sample): as the network was trained.
    timestep_spacing: uniform, which is `solve`'s grid k·N/n of real numbers, or diffusers' leading, trailing and
    linspace of whole ones. steps_offset: added to uniform and leading times.
    set_alpha_to_one: the last step ends in clean data (t = −1, ᾱ = 1, the paper), not at ᾱ of t = 0; a step from
    t = 0 to t = 0 is left out then.

    `timesteps` lists every network call, the stages of starting steps included: more entries than steps. The state
    is kept in float32 or better, whatever the pipeline's latents are. What a pipeline changes in the latents between
    steps (inpainting, callbacks) the method goes on from; at a stage inside a step only the network sees it.

    Raises ValueError on anything else.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012 (as diffusers has it)
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "uniform",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        rescale_betas_zero_snr: bool = False,
        method: str = "F-PNDM",
    ) -> None:
        if method_named(method).adaptive:
            raise ValueError(
                f"method {method} chooses its network calls as it goes, and a scheduler lists them first; "
                "PNDMPipeline and solve can run it"
            )
        _one_of("beta_schedule", beta_schedule, BETAS)
        _one_of("prediction_type", prediction_type, PREDICTIONS)
        _one_of("timestep_spacing", timestep_spacing, SPACINGS)
        if rescale_betas_zero_snr:
            raise ValueError("rescale_betas_zero_snr leaves ᾱ = 0 at the first step, from which no method here starts")
        total = whole("num_train_timesteps", num_train_timesteps)
        self.schedule = Schedule(BETAS[beta_schedule], beta_start, beta_end, total, betas=trained_betas)
        self.betas = torch.tensor(self.schedule.betas, dtype=torch.float32)
        self.alphas_cumprod = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float32)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(self.schedule.diffusion_step - 1, -1, -1)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Begin a run of `num_inference_steps` steps, 1 … N, or of steps at `timesteps`, falling in 0 … N−1.

        Then `.timesteps` has the time of every network call to come. Raises ValueError.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("set_timesteps takes num_inference_steps or timesteps, one of them")
        nodes = self._nodes(num_inference_steps) if timesteps is None else floats("timesteps", timesteps)
        end, last = (-1.0 if self.config.set_alpha_to_one else 0.0), self.schedule.diffusion_step - 1
        falling = nodes and sorted(set(nodes), reverse=True) == nodes
        if not falling or not 0 <= nodes[-1] <= nodes[0] <= last or nodes == [end]:
            shown = ", ".join(f"{t:g}" for t in nodes[:4]) + (", …" if len(nodes) > 4 else "")
            raise ValueError(
                f"the times of the steps must fall from {last} at most to 0 at least, and end above {end:g} if there "
                f"is only one; they are {shown or 'none'}"
            )
        self._grid = [*nodes, end] if end < nodes[-1] else nodes
        method = METHODS[self.config.method]
        times = list(chain(*calls(method.trajectory(nothing(), self.schedule, self._grid, "exact"))))
        listed = torch.tensor(times, dtype=torch.int64 if all(t == int(t) for t in times) else torch.float32)
        self.timesteps, self._times = listed.to(device), listed.tolist()
        self.num_inference_steps = len(self._grid) - 1
        self._events = self._event = self._step_index = self._begin_index = None

    def _nodes(self, steps):
        steps = whole("num_inference_steps", steps)
        grid_of(self.schedule, steps, "exact")  # raises on a count that cannot be run
        spacing = self.config.timestep_spacing
        offset = whole("steps_offset", self.config.steps_offset) if spacing in ("uniform", "leading") else 0
        return [t + offset for t in SPACINGS[spacing](steps, self.schedule)]

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Go on by one network call: from x at this entry of `timesteps` to x at the next, or to the result.

        model_output: of the network at `sample` and `timestep`, like sample (n, C, …), or (n, 2C, …) where a network
        gives variances too, which are not used. Returns x like sample, as `.prev_sample` or, without `return_dict`,
        in a tuple. generator, or one for each image: of the noise that DDPM draws. eta and use_clipped_model_output are
        DDIMScheduler's and must be off.

        Raises ValueError on other shapes or types, out of turn, and when the run is over.
        """
        if eta or use_clipped_model_output:
            raise ValueError("eta and use_clipped_model_output must be off; of the methods here DDPM has noise")
        if self.num_inference_steps is None:
            raise ValueError("step comes after set_timesteps")
        self._check(model_output, sample)
        x = sample if sample.dtype.itemsize >= 4 else sample.float()
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
            self._events = resume(self.config.method, x, self.schedule, self._grid, self._step_index)
        self._check_turn(timestep)
        if self._event is None:
            query = next(self._events)
        else:
            if self._event.x.shape != sample.shape:
                raise ValueError(f"sample is {tuple(sample.shape)}, the run began with {tuple(self._event.x.shape)}")
            # The state in its own precision wherever the pipeline has left it as it was.
            x = torch.where(sample == self._event.x.to(sample.dtype), self._event.x, x)
            query = self._event
            if isinstance(query, Step):
                query.x.copy_(x)
                query = next(self._events)

        output = model_output[:, : sample.shape[1]].to(x.dtype)
        eps = eps_from(output, x, self.schedule.alpha_cumprod(query.t), self.config.prediction_type)
        self._event = self._events.send(eps)
        if isinstance(self._event, Draw):
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            self._event = self._events.send(noise)
        self._step_index += 1
        x = self._event.x.to(sample.dtype, copy=True)
        if self._step_index == len(self._times):
            self._events = self._event = None
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _check(self, model_output, sample):
        for name, value in (("model_output", model_output), ("sample", sample)):
            if not torch.is_tensor(value) or not value.is_floating_point():
                kind = value.dtype if torch.is_tensor(value) else type(value).__name__
                raise ValueError(f"{name} is {kind}, it must be a tensor of floating-point numbers")
        n, channels, *rest = sample.shape if sample.ndim > 1 else (0, 0)
        able = [(n, channels, *rest), (n, 2 * channels, *rest)]
        if not channels or tuple(model_output.shape) not in able:
            raise ValueError(
                f"model_output is {tuple(model_output.shape)} for a sample {tuple(sample.shape)}; "
                "it must be like the sample (n, C, …), or have twice its channels"
            )

    def _check_turn(self, timestep):
        if self._step_index >= len(self._times):
            raise ValueError(f"all {len(self._times)} network calls of the run are made; set_timesteps begins another")
        # On an accelerator, looking at every timestep would wait for it.
        here = not torch.is_tensor(timestep) or timestep.device.type == "cpu"
        expected = self._times[self._step_index]
        if here and float(timestep) != expected:
            raise ValueError(f"step is called for t = {float(timestep):g}, the next of timesteps is {expected:g}")

    @property
    def step_index(self) -> int | None:
        """Index in `timesteps` of the next network call, None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index in `timesteps` where the run begins, None if the first `step` shall tell."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at an entry of `timesteps` (image to image); the sample is to be as noisy as that entry."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Where t stands in `timesteps`; of several, the last, where a step begins. Raises ValueError."""
        found = [i for i, t in enumerate(self._times) if t == float(timestep)]
        if not found:
            raise ValueError(f"t = {float(timestep):g} is none of timesteps")
        return found[-1]

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample as it is: the networks see x itself."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | Sequence[float]
    ) -> torch.Tensor:
        """√ᾱ_t · original + √(1−ᾱ_t) · noise, both (n, …), t (n,) or (1,) real in 0 … N−1. Raises ValueError."""
        times = torch.as_tensor(timesteps).cpu().double().numpy().reshape(-1)
        last = self.schedule.diffusion_step - 1
        if not np.all((times >= 0) & (times <= last)):
            raise ValueError(f"timesteps must be in 0 … {last}, not {times.min():g} … {times.max():g}")
        alpha = torch.from_numpy(np.atleast_1d(self.schedule.alpha_cumprod(times)))
        alpha = alpha.reshape(-1, *[1] * (original_samples.ndim - 1))
        return alpha.sqrt().to(original_samples) * original_samples + (1 - alpha).sqrt().to(noise) * noise

    def __len__(self) -> int:
        return self.schedule.diffusion_step


def _one_of(name, value, known):
    if value not in known:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")
