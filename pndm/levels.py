"""The noise levels of `MethodScheduler`, and what its tensors must look like."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pndm.model.diffusers import BETA_SCHEDULES, schedule_of, without_signal
from pndm.runner.solver.flow import FlowSchedule
from pndm.runner.solver.schedule import PREDICTIONS, Schedule, betas_of
from pndm.runner.solver.solve import whole
from pndm.times import NAMES


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting of a `MethodScheduler` that is not one of those that it knows, or out of range."""
    for name, known in (
        ("beta_schedule", BETA_SCHEDULES),
        ("prediction_type", PREDICTIONS),
        ("timestep_spacing", NAMES),
        ("time_shift_type", ("exponential", "linear")),
    ):
        if config[name] not in known:
            raise ValueError(f"{name} {config[name]!r} is not one of {', '.join(known)}")
    for name in ("beta_start", "beta_end"):
        if not isinstance(config[name], numbers.Real):
            raise ValueError(f"{name} is {config[name]!r}, it must be a number")
    for name, most in (("snr_shift_scale", math.inf), ("shift", math.inf), ("shift_terminal", 1.0)):
        value, beyond = config[name], f" and below {most:g}" if most < math.inf else ""
        if value is None and name == "shift_terminal":
            continue
        if not isinstance(value, numbers.Real) or not 0 < float(value) < most:
            raise ValueError(f"{name} is {value!r}, it must be a number above 0{beyond}")


def time_of(timestep: Any) -> float:
    """A timestep as a number. Raises ValueError."""
    try:
        return float(timestep)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"timestep is {timestep!r}, it must be a number") from None


def schedule_from(config: Mapping[str, Any], flow: bool) -> Schedule:
    """The schedule of a configuration. Raises ValueError."""
    total = whole("num_train_timesteps", config["num_train_timesteps"])
    if total < 1:
        raise ValueError(f"num_train_timesteps is {total}, it must be at least 1")
    if flow:
        return FlowSchedule(total)
    named = schedule_of(config["beta_schedule"], config["beta_start"], config["beta_end"], total)
    schedule = Schedule(**(named if config["trained_betas"] is None else {"betas": config["trained_betas"]}))
    scale, zero = config["snr_shift_scale"], config["rescale_betas_zero_snr"]
    if scale == 1 and not zero:
        return schedule
    alpha = schedule.alphas_cumprod
    alpha = alpha / (scale + (1 - scale) * alpha)
    return Schedule(betas=without_signal(alpha) if zero else betas_of(alpha))


def sigmas_at(schedule: Schedule, times: Sequence[float]) -> NDArray[np.float64]:
    """√(1/ᾱ − 1) at each time; with flow matching its σ."""
    if isinstance(schedule, FlowSchedule):
        return np.asarray(times) / schedule.diffusion_step
    return np.asarray(schedule.rho(np.asarray(times)))


def factors_at(schedule: Schedule, timesteps: Any, known: Mapping[float, float], like: Any) -> tuple[Any, Any]:
    """What images `like` (n, …) and their noise are multiplied by at `timesteps`, (n,) or (1,): (n or 1, 1, …) each.

    known: told time → the time that x is at. Raises ValueError for times that no network knows, and for images that
    are not of floating-point numbers.
    """
    if not like.is_floating_point():
        raise ValueError(f"the images are {like.dtype}, they must be of floating-point numbers")
    try:
        listed = torch.as_tensor(timesteps).cpu().double().numpy().reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"timesteps are {timesteps!r}, they must be numbers") from None
    if len(listed) not in (1, len(like)):
        raise ValueError(f"{len(listed)} timesteps are given for {len(like)} images")
    times, last = np.array([known.get(t, t) for t in listed.tolist()]), schedule.last
    if not np.all((times >= 0) & (times <= last)):
        raise ValueError(f"timesteps must be in 0 … {last}, not {times.min():g} … {times.max():g}")
    if isinstance(schedule, FlowSchedule):
        factors = 1 - times / schedule.diffusion_step, times / schedule.diffusion_step
    else:
        alpha = schedule.alpha_cumprod(times)
        factors = alpha**0.5, (1 - alpha) ** 0.5
    a, b = (torch.from_numpy(v).reshape(-1, *[1] * (like.ndim - 1)).to(like) for v in factors)
    return a, b


def check_start(config: Mapping[str, Any], t: float) -> None:
    """Raise ValueError if a run that begins at t has no signal there, and the network predicts ε."""
    bare = config["rescale_betas_zero_snr"] and t > config["num_train_timesteps"] - 2
    if bare and config["prediction_type"] == "epsilon":
        raise ValueError(
            f"prediction_type epsilon says nothing of the image at t = {t:g}, where rescale_betas_zero_snr leaves "
            "noise alone; v_prediction and sample do"
        )


def check_shapes(model_output: Any, sample: Any, generator: Any = None) -> None:
    """Raise ValueError unless both are tensors of numbers, the output like the sample, or with twice its channels.

    A list of generators must have one for each image, or one for all.
    """
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
    for one in generator if isinstance(generator, list) else [generator]:
        if not isinstance(one, torch.Generator | None):
            raise ValueError(f"generator is {one!r}, it must be a torch.Generator, or a list of one for each image")
    if isinstance(generator, list) and len(generator) not in (1, n):
        raise ValueError(f"generator has {len(generator)} for {n} images")
