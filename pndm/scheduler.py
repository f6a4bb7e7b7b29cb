"""The methods as a scheduler of diffusers, for any of its pipelines. Two lines:

    from pndm import MethodScheduler
    pipeline.scheduler = MethodScheduler.from_config(pipeline.scheduler.config, method="F-PNDM")

Only this module and `pndm.sources` need diffusers. A method asks for ε (`pndm.runner.solver`). Here a pipeline answers,
one network call a `step`. Between two calls the run is a value (`Run`).
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from pndm.config.load import load_solver
from pndm.levels import check_settings, check_shapes, check_start, factors_at, schedule_from, sigmas_at, time_of
from pndm.model.machine import device_of
from pndm.runner.solver.events import Query
from pndm.runner.solver.run import Run, rest_of, spans
from pndm.runner.solver.schedule import eps_from
from pndm.runner.solver.solve import whole
from pndm.times import all_times, calls_of, check_method, step_options, step_times, told_times

try:
    from diffusers import ConfigMixin, SchedulerMixin, configuration_utils
    from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput as SchedulerOutput
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
    from diffusers.utils.torch_utils import randn_tensor

    from pndm.sources import settings_from
except ModuleNotFoundError as error:
    if error.name != "diffusers":
        raise
    raise ImportError("MethodScheduler needs diffusers, which is not installed: pip install diffusers") from None

_Init = TypeVar("_Init", bound=Callable[..., None])
# diffusers' decorator, which keeps the arguments as `.config`, with a type.
register_to_config: Callable[[_Init], _Init] = configuration_utils.register_to_config
Times = torch.Tensor | Sequence[float]
MORE_SOURCES = ("FlowMatchEulerDiscreteScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")


class MethodScheduler(SchedulerMixin, ConfigMixin):
    """A method of `METHODS` in a diffusers pipeline. The states are those of `solve` on the same grid.

    How the network was trained, with noise levels ᾱ:
    num_train_timesteps, beta_start, beta_end, beta_schedule (linear, scaled_linear, squaredcos_cap_v2, exp, laplace,
        sigmoid), trained_betas (in place of these), prediction_type (epsilon, v_prediction, sample).
    snr_shift_scale: the signal-to-noise ratio is divided by it (CogVideoX). rescale_betas_zero_snr: ᾱ is 0 at the end.
    Or with flow matching (`FlowSchedule`):
    prediction_type "flow_prediction", or use_flow_sigmas; num_train_timesteps; shift, use_dynamic_shifting,
        time_shift_type, shift_terminal as in FlowMatchEulerDiscreteScheduler. Pipelines read base_shift, max_shift,
        base_image_seq_len and max_image_seq_len, and make of them the mu that they give to `set_timesteps`.

    The run:
    method: a name in `METHODS`, but not PF: its network calls cannot be listed in advance. With flow matching, and with
        rescale_betas_zero_snr, x begins as noise alone; only methods of one call a step can start there.
    solver: in place of method and its times, a solver file of `--runner search` (a path, a name in config/solvers, or
        its content), of the same noise schedule. Then num_inference_steps has no effect. The scheduler does not know
        the network that the file is of.
    timestep_spacing: a spacing of `solve` ("uniform" is k·N/n, real numbers), or diffusers' "leading", "trailing",
        "linspace", whole numbers. use_karras_sigmas, use_exponential_sigmas: "karras", "logsnr" in place of it.
    steps_offset: added to uniform and leading times. whole_timesteps: times are rounded, so that they can be an index;
        None: with diffusers' spacings, where the method's stages can be whole in that many steps.
    set_alpha_to_one: True: the last step ends in clean data (ᾱ = 1), as in the paper. False: it ends at ᾱ of t = 0.

    `timesteps` lists every network call. Stages of Runge–Kutta steps are calls, so there are more entries than steps.
    `sigmas` has √(1/ᾱ − 1), or σ of flow matching, of each entry and of the end. `step_index` is the entry of the next
    call, None before the first; `begin_index` where the run begins, None: the timestep of the first `step` tells it.
    The state is kept in float32 or better, whatever the pipeline's latents are. If a pipeline changes the latents
    between steps (inpainting, callbacks), the method goes on from the changed ones; at a stage inside a step, only the
    network sees the change. The scheduler can be copied and pickled at any call. Raises ValueError for anything else.

        >>> from pndm import MethodScheduler
        >>> scheduler = MethodScheduler(method="F-PNDM")
        >>> scheduler.set_timesteps(10)
        >>> len(scheduler.timesteps)
        19
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers] + list(MORE_SOURCES)
    order = 1
    init_noise_sigma = 1.0

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
        snr_shift_scale: float = 1.0,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        whole_timesteps: bool | None = False,
        use_flow_sigmas: bool = False,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        method: str = "F-PNDM",
        solver: str | dict[str, Any] | None = None,
    ) -> None:
        if solver is not None and method != "F-PNDM":
            raise ValueError(f"a solver file takes the place of the method; method {method!r} cannot be given with it")
        self._solver = None if solver is None else load_solver(solver)
        self._method: Any = self._solver.line if self._solver else method
        if self._solver:  # the configuration keeps the file's content, so that it can be saved
            self.register_to_config(solver=self._solver.model_dump(exclude_none=True))
        check_settings(self.config)
        self.flow = prediction_type == "flow_prediction" or use_flow_sigmas
        check_method(method, whole_timesteps, from_noise=self.flow or rescale_betas_zero_snr)
        self.schedule = schedule_from(self.config, self.flow)
        if self._solver:
            if self.flow or whole_timesteps:
                raise ValueError("a solver file is of noise levels at real times: no flow matching, no whole_timesteps")
            self._solver.check_schedule(self.schedule, "solver")
        if not self.flow:
            self.betas = torch.tensor(self.schedule.betas, dtype=torch.float32)
            self.alphas_cumprod = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float32)
        times = all_times(self.config, self.schedule)
        self._listed = torch.tensor(times, dtype=torch.float32 if self.flow else torch.int64)
        self.sigmas = torch.from_numpy(sigmas_at(self.schedule, [*times, self._end])).float()
        self.num_inference_steps: int | None = None
        self.timesteps, self._times = self._listed, self._listed.tolist()
        self._reset()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler with the settings of another's `config`; kwargs: settings on top.

        What it leaves out is the default of the class that it names. `method` replaces its solver, `solver` its method.
        Raises ValueError for a configuration whose network no method here can sample with.
        """
        if isinstance(config, Mapping):
            known = [] if return_unused_kwargs else inspect.signature(cls.__init__).parameters
            config = settings_from(config, kwargs, known)
        parent: Any = super()
        return parent.from_config(config, return_unused_kwargs, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin a run of `num_inference_steps` steps, 1 … N, or of a step from each of `timesteps` or `sigmas`.

        timesteps: falling, in 0 … N−1; with flow matching in 0 … N. Calls as `.timesteps` lists them stand for their
            steps.
        sigmas: √(1/ᾱ − 1) of each; with flow matching σ, before its shift. A 0 at the end is left out. With both, σ
            says where x is, and t is what the network is told.
        mu: the shift, with flow matching where use_dynamic_shifting is on.

        Afterwards `.timesteps` lists the time of every network call to come. Raises ValueError for other values.
        """
        place = device_of("cpu" if device is None else device)
        if self._solver:
            if timesteps is not None or sigmas is not None:
                raise ValueError("a solver file says the times; timesteps and sigmas do not go with it")
            grid = list(self._solver.times)
        else:
            nodes = step_times(self.config, self.schedule, self._end, num_inference_steps, timesteps, sigmas, mu)
            grid = [*nodes, self._end]
        calls = calls_of(self._method, grid, self.schedule)
        told = [float(call.t) for call in calls]
        if timesteps is not None and sigmas is not None:
            told = told_times(timesteps, len(calls), self.schedule)
        counts = not self.flow and all(t == int(t) for t in told)
        listed = torch.tensor(told, dtype=torch.int64 if counts else torch.float32)
        self.timesteps = self._listed = listed.to(place)  # the last that may fail: until here the old run stands
        self._grid, self._times = grid, listed.tolist()
        self._levels = [float(call.level) for call in calls]
        self.sigmas = torch.from_numpy(sigmas_at(self.schedule, [*self._levels, self._grid[-1]])).float()
        self.num_inference_steps = len(self._grid) - 1
        self._reset()

    def _reset(self) -> None:
        """Forget the run under way."""
        self.run: Run | None = None
        self.step_index: int | None = None
        self.begin_index: int | None = None

    @property
    def _end(self) -> float:
        """The time at which a run ends."""
        return self.schedule.clean if self.config["set_alpha_to_one"] else 0.0

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Go on by one network call: from x at this entry of `timesteps` to x at the next, or to the result.

        model_output: the network's output at `sample` and `timestep`, like sample (n, C, …); or (n, 2C, …) from a
            network that predicts variances too, which are not used.
        eta: the share of DDPM's noise in this step, 0 … 1; of DDIM. use_clipped_model_output must be off.
        generator: of the noise that is drawn; one, or a list of one for each image.

        Returns x like sample, as `.prev_sample`, and the image that the network predicts in this call, as
        `.pred_original_sample`; or a tuple of both without `return_dict`. Raises ValueError for other shapes or types,
        for a timestep that is not the next, and when the run is over.
        """
        if use_clipped_model_output:
            raise ValueError("use_clipped_model_output must be off")
        options = step_options(self._method, eta)
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        check_shapes(model_output, sample, generator)
        index = self.begin_index if self.step_index is None else self.step_index
        index = self.index_for_timestep(timestep) if index is None else index
        self._check_turn(timestep, index)
        query, x = self._asked(sample, index, options)
        alpha = self.schedule.alpha_cumprod(query.level)
        output = model_output[:, : sample.shape[1]].to(x.dtype)
        eps = eps_from(output, x, math.sqrt(alpha), math.sqrt(1 - alpha), self.config["prediction_type"])
        data = (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)

        def noise(x: torch.Tensor) -> Any:
            return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)

        assert self.run is not None
        event = self.run.answer(eps, noise, self.schedule, **options)
        self.step_index = index + 1
        found = self._shown(event.x, event.t, sample.dtype), data.to(sample.dtype)
        if self.step_index == len(self._times):
            self.run = None
        return SchedulerOutput(*found) if return_dict else found

    def _asked(self, sample: torch.Tensor, index: int, options: dict[str, Any]) -> tuple[Query, torch.Tensor]:
        """The network call that is under way, and its x in the precision and the frame of the method."""
        x = sample.to(self._precision(sample))
        if self.run is None:
            left = rest_of(spans(self._method, self._grid), self.schedule, index)
            run = Run(left, x / self._scale(left[0].grid[0]))
            query = run.query(self.schedule, **options)
            check_start(self.config, float(query.level))
            self.run = run
            return query, query.x
        query = self.run.query(self.schedule, **options)
        if query.x.shape != sample.shape:
            raise ValueError(f"sample is {tuple(sample.shape)}, the run began with {tuple(query.x.shape)}")
        # Where the pipeline has left the latents unchanged, take the state in its own precision.
        kept = sample == self._shown(query.x, query.level, sample.dtype)
        x = torch.where(kept, query.x, x / self._scale(query.level))
        if not self.run.replies:
            self.run.x = x
        return query, x

    def _precision(self, sample: torch.Tensor) -> torch.dtype:
        """Of the state. Where x can be noise alone, ε and the image are both had from it in float64 alone."""
        exact = self.flow or self.config["rescale_betas_zero_snr"]
        if exact and sample.device.type in ("cpu", "cuda"):  # others may have no float64
            return torch.float64
        return sample.dtype if sample.dtype.itemsize >= 4 else torch.float32

    def _scale(self, t: Any) -> float:
        """What x of the method is multiplied by to be the pipeline's."""
        return float(self.schedule.scale(t))

    def _shown(self, x: torch.Tensor, t: Any, dtype: torch.dtype) -> torch.Tensor:
        return x.to(dtype, copy=True) if not self.flow else (x * self._scale(t)).to(dtype)

    def _check_turn(self, timestep: float | torch.Tensor, index: int) -> None:
        if index >= len(self._times):
            raise ValueError(f"all {len(self._times)} network calls of the run are done; set_timesteps begins another")
        # Reading a timestep on an accelerator would wait for the accelerator.
        here = not torch.is_tensor(timestep) or timestep.device.type == "cpu"
        expected = self._times[index]
        if here and self._place(timestep) != index and (t := time_of(timestep)) != expected:
            raise ValueError(f"step is called for t = {t:g}, but the next of timesteps is {expected:g}")

    def _place(self, timestep: float | torch.Tensor) -> int | None:
        """The entry of `timesteps` that a tensor is a view of, as in a loop over them or a slice; None for another."""
        if not torch.is_tensor(timestep) or timestep.numel() != 1 or timestep.dtype != self._listed.dtype:
            return None
        ours, theirs = self._listed.untyped_storage(), timestep.untyped_storage()
        return int(timestep.storage_offset()) if ours.data_ptr() == theirs.data_ptr() else None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at an entry of `timesteps` (image to image). The sample must be as noisy as that entry says."""
        if not 0 <= whole("begin_index", begin_index) < len(self._times):
            raise ValueError(f"begin_index is {begin_index}, it must be in 0 … {len(self._times) - 1}")
        self.begin_index = begin_index

    def index_for_timestep(self, timestep: float | torch.Tensor, schedule_timesteps: Any = None) -> int:
        """The index of t in `timesteps`. Raises ValueError.

        If t is there twice, a tensor out of a loop over `timesteps[k:]` tells which it is. A number does not: then it
        is the last one, where a step begins.
        """
        place = self._place(timestep)
        if place is not None:
            return place
        wanted = time_of(timestep)
        found = [i for i, t in enumerate(self._times) if t == wanted]
        if not found:
            raise ValueError(f"t = {wanted:g} is not in timesteps")
        return found[-1]

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample unchanged: the networks here see x itself."""
        return sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Times) -> torch.Tensor:
        """√ᾱ_t · original + √(1−ᾱ_t) · noise, both (n, …), t (n,) or (1,) real in 0 … N−1. Raises ValueError.

        With flow matching (1−σ) · original + σ · noise, t in 0 … N.
        """
        a, b = self._factors(timesteps, original_samples)
        return a * original_samples + b * noise

    def scale_noise(self, sample: torch.Tensor, timestep: Times, noise: torch.Tensor) -> torch.Tensor:
        """`add_noise`, as the pipelines of flow matching call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: Times) -> torch.Tensor:
        """v = √ᾱ_t · noise − √(1−ᾱ_t) · sample, what a network of v prediction learns; noise − sample for flow."""
        a, b = self._factors(timesteps, sample)
        return noise - sample if self.flow else a * noise - b * sample

    def _factors(self, timesteps: Times, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `factors_at` says, for a run whose x may be at another time than the told one."""
        known = dict(zip(self._times, self._levels, strict=True)) if self.num_inference_steps else {}
        return factors_at(self.schedule, timesteps, known, like)

    def __len__(self) -> int:
        return self.schedule.diffusion_step
