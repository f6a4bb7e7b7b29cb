"""The methods as a scheduler of diffusers, for any of its pipelines. Two lines:

    from pndm import MethodScheduler
    pipeline.scheduler = MethodScheduler.from_config(pipeline.scheduler.config, method="F-PNDM")

This is the only module that needs diffusers. A method is a generator that asks for ε (`pndm.runner.solver`). Here a
pipeline answers it, one network call a `step`.
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
    from diffusers import ConfigMixin, SchedulerMixin, configuration_utils
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor
except ModuleNotFoundError as error:
    if error.name != "diffusers":
        raise
    raise ImportError("MethodScheduler needs diffusers, which is not installed: pip install diffusers") from None

_Init = TypeVar("_Init", bound=Callable[..., None])
# diffusers' decorator, which keeps the arguments as `.config`, with a type.
register_to_config: Callable[[_Init], _Init] = configuration_utils.register_to_config

SPACINGS = ("uniform", "leading", "trailing", "linspace")


def nodes_of(spacing: str, n: int, schedule: Schedule) -> Any:
    """The times of n steps. But for uniform they are diffusers' (Lin et al. 2024, table 2), rounded as there."""
    total = schedule.diffusion_step
    if spacing == "leading":
        return [k * (total // n) for k in reversed(range(n))]
    if spacing == "trailing":
        return (np.arange(total, 0, -total / n)[:n].round() - 1).tolist()
    if spacing == "linspace":
        return np.linspace(0, total - 1, n).round()[::-1].tolist()
    return uniform(n, schedule)


class MethodScheduler(SchedulerMixin, ConfigMixin):
    """A method of `METHODS` in a diffusers pipeline. The states are those of `solve` on the same grid.

    method: a name in `METHODS`, but not PF: its network calls cannot be listed in advance.
    num_train_timesteps, beta_start, beta_end, beta_schedule (linear, scaled_linear, squaredcos_cap_v2),
        trained_betas (in place of these), prediction_type (epsilon, v_prediction, sample): as the network was trained.
    timestep_spacing: "uniform", the grid of `solve`, k·N/n, real numbers; or diffusers' "leading", "trailing",
        "linspace", whole numbers. steps_offset: added to uniform and leading times.
    set_alpha_to_one: True: the last step ends in clean data (t = −1, ᾱ = 1), as in the paper. False: it ends at ᾱ of
        t = 0, and there is no step from t = 0 to t = 0.

    `timesteps` lists every network call. Stages of Runge–Kutta steps are calls, so there are more entries than steps.
    `step_index` is the entry of the next call, None before the first; `begin_index` where the run begins, None: the
    timestep of the first `step` tells it.
    The state is kept in float32 or better, whatever the pipeline's latents are. If a pipeline changes the latents
    between steps (inpainting, callbacks), the method goes on from the changed ones. If it changes them at a stage
    inside a step, only the network sees it.

    Raises ValueError for anything else.
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
                f"method {method} chooses its network calls as it goes, but a scheduler must list them first; "
                "PNDMPipeline and solve can run it"
            )
        for name, value, known in (
            ("beta_schedule", beta_schedule, BETAS),
            ("prediction_type", prediction_type, PREDICTIONS),
            ("timestep_spacing", timestep_spacing, SPACINGS),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")
        if rescale_betas_zero_snr:
            raise ValueError("rescale_betas_zero_snr makes ᾱ = 0 at the first step; no method here can start there")
        total = whole("num_train_timesteps", num_train_timesteps)
        self.schedule = Schedule(BETAS[beta_schedule], beta_start, beta_end, total, betas=trained_betas)
        self.betas = torch.tensor(self.schedule.betas, dtype=torch.float32)
        self.alphas_cumprod = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float32)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._reset()
        self.timesteps = torch.arange(self.schedule.diffusion_step - 1, -1, -1)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Begin a run of `num_inference_steps` steps, 1 … N, or of a step from each of `timesteps`, falling in 0 … N−1.

        Afterwards `.timesteps` lists the time of every network call to come. Raises ValueError for other values.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("set_timesteps takes either num_inference_steps or timesteps")
        nodes = self._nodes(num_inference_steps) if timesteps is None else floats("timesteps", timesteps)
        end = -1.0 if self.config["set_alpha_to_one"] else 0.0
        last = self.schedule.diffusion_step - 1
        falling = nodes and sorted(set(nodes), reverse=True) == nodes
        if not falling or not 0 <= nodes[-1] <= nodes[0] <= last or nodes == [end]:
            shown = ", ".join(f"{t:g}" for t in nodes[:4]) + (", …" if len(nodes) > 4 else "")
            raise ValueError(
                f"the times of the steps must fall from {last} at most to 0 at least, and end above {end:g} if there "
                f"is only one; they are {shown or 'none'}"
            )
        self._grid = [*nodes, end] if end < nodes[-1] else nodes
        method = METHODS[self.config["method"]]
        times = list(chain(*calls(method.trajectory(nothing(), self.schedule, self._grid))))
        listed = torch.tensor(times, dtype=torch.int64 if all(t == int(t) for t in times) else torch.float32)
        self.timesteps, self._times = listed.to(device), listed.tolist()
        self.num_inference_steps = len(self._grid) - 1
        self._reset()

    def _reset(self) -> None:
        """Forget the run under way."""
        self._events: Any = None  # the method's trajectory
        self._event: Any = None  # what it yielded last: a Query or a Step
        self.step_index: int | None = None
        self.begin_index: int | None = None

    def _nodes(self, steps: int | None) -> list[float]:
        steps = whole("num_inference_steps", steps)
        grid_of(self.schedule, steps)  # raises ValueError for a number of steps that cannot be run
        spacing = self.config["timestep_spacing"]
        offset = whole("steps_offset", self.config["steps_offset"]) if spacing in ("uniform", "leading") else 0
        return [t + offset for t in nodes_of(spacing, steps, self.schedule)]

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Go on by one network call: from x at this entry of `timesteps` to x at the next, or to the result.

        model_output: the network's output at `sample` and `timestep`, like sample (n, C, …); or (n, 2C, …) from a
            network that predicts variances too, which are not used.
        generator: of the noise that DDPM draws; one, or a list of one for each image.
        eta, use_clipped_model_output: DDIMScheduler's arguments; they must be off.

        Returns x like sample, as `.prev_sample`, or in a tuple without `return_dict`. Raises ValueError for other
        shapes or types, for a timestep that is not the next, and when the run is over.
        """
        if eta or use_clipped_model_output:
            raise ValueError("eta and use_clipped_model_output must be off; for noise take method DDPM")
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        self._check(model_output, sample)
        x = sample if sample.dtype.itemsize >= 4 else sample.float()
        if self.step_index is None:
            self.step_index = self.index_for_timestep(timestep) if self.begin_index is None else self.begin_index
            self._events = resume(self.config["method"], x, self.schedule, self._grid, self.step_index)
        self._check_turn(timestep, self.step_index)
        query = self._event
        if query is None:
            query = next(self._events)
        else:
            if query.x.shape != sample.shape:
                raise ValueError(f"sample is {tuple(sample.shape)}, the run began with {tuple(query.x.shape)}")
            # Where the pipeline has left the latents unchanged, take the state in its own precision.
            x = torch.where(sample == query.x.to(sample.dtype), query.x, x)
            if isinstance(query, Step):
                query.x.copy_(x)
                query = next(self._events)

        output = model_output[:, : sample.shape[1]].to(x.dtype)
        eps = eps_from(output, x, self.schedule.alpha_cumprod(query.t), self.config["prediction_type"])
        event = self._events.send(eps)
        if isinstance(event, Draw):
            event = self._events.send(randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype))
        self.step_index += 1
        self._event = event
        x = event.x.to(sample.dtype, copy=True)
        if self.step_index == len(self._times):
            self._events = self._event = None
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _check(self, model_output: Any, sample: Any) -> None:
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

    def _check_turn(self, timestep: float | torch.Tensor, index: int) -> None:
        if index >= len(self._times):
            raise ValueError(f"all {len(self._times)} network calls of the run are done; set_timesteps begins another")
        # Reading a timestep on an accelerator would wait for the accelerator.
        here = not torch.is_tensor(timestep) or timestep.device.type == "cpu"
        expected = self._times[index]
        if here and float(timestep) != expected:
            raise ValueError(f"step is called for t = {float(timestep):g}, but the next of timesteps is {expected:g}")

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at an entry of `timesteps` (image to image). The sample must be as noisy as that entry says."""
        self.begin_index = begin_index

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """The index of t in `timesteps`; the last one if t is there twice, where a step begins. Raises ValueError."""
        found = [i for i, t in enumerate(self._times) if t == float(timestep)]
        if not found:
            raise ValueError(f"t = {float(timestep):g} is not in timesteps")
        return found[-1]

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample unchanged: the networks here see x itself."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | Sequence[float]
    ) -> torch.Tensor:
        """√ᾱ_t · original + √(1−ᾱ_t) · noise, both (n, …), t (n,) or (1,) real in 0 … N−1. Raises ValueError."""
        times = torch.as_tensor(timesteps).cpu().double().numpy().reshape(-1)
        last = self.schedule.diffusion_step - 1
        if not np.all((times >= 0) & (times <= last)):
            raise ValueError(f"timesteps must be in 0 … {last}, not {times.min():g} … {times.max():g}")
        alpha = torch.from_numpy(self.schedule.alpha_cumprod(times)).reshape(-1, *[1] * (original_samples.ndim - 1))
        return alpha.sqrt().to(original_samples) * original_samples + (1 - alpha).sqrt().to(noise) * noise

    def __len__(self) -> int:
        return self.schedule.diffusion_step
