"""The times of the steps that `MethodScheduler` takes: diffusers' spacings, flow matching's σ, and whole numbers."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pndm.runner.solver.events import Method, Query
from pndm.runner.solver.flow import FlowSchedule
from pndm.runner.solver.grid import LIMITED, SPACINGS, floats, grid_of
from pndm.runner.solver.methods import METHODS, method_named
from pndm.runner.solver.options import OPTIONS
from pndm.runner.solver.run import spans
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import whole

Config = Mapping[str, Any]
THEIRS = ("leading", "trailing", "linspace")
MOST_SIGMA = 4096.0  # where equal steps of σ begin, if there is no signal at the end: as in diffusers
NAMES = tuple(dict.fromkeys((*SPACINGS, *THEIRS)))


def calls_of(method: str | Method, grid: Sequence[float], schedule: Schedule) -> list[Query]:
    """All network calls of a run."""
    return list(chain(*chain(*(span.calls(schedule) for span in spans(method, grid)))))


def one_call(method: str) -> bool:
    """Whether every step of the method is one network call."""
    return not METHODS[method].adaptive and len(calls_of(method, [3.0, 2.0, 1.0, 0.0], Schedule())) == 3


def halves_alone(method: str) -> bool:
    """Whether the stages of the method are at the ends and the middles of its steps, so that they can be whole."""
    if METHODS[method].adaptive:
        return False
    return all(query.t == int(query.t) for query in calls_of(method, [8.0, 6.0, 4.0, 2.0, 0.0], Schedule()))


def falling(times: list[float]) -> bool:
    """Whether each time is below the one before."""
    return sorted(set(times), reverse=True) == times


def takes_whole(config: Config) -> bool:
    """Whether times are rounded; None: where the spacing is diffusers' and the stages can be whole.

    With None, steps that are too many for whole stages keep their real times.
    """
    if config["whole_timesteps"] is None:
        return spacing_of(config) in THEIRS and halves_alone(config["method"])
    return bool(config["whole_timesteps"])


def check_method(method: str, whole_timesteps: bool | None, from_noise: bool) -> None:
    """Raise ValueError for a method that a scheduler cannot run. from_noise: x begins as noise alone, at ᾱ = 0."""
    if not isinstance(method, str):  # it is part of the configuration, which is saved as JSON
        raise ValueError(f"method is {method!r}, it must be a name; solve and PNDMPipeline take a Method")
    if method_named(method).adaptive:
        raise ValueError(
            f"method {method} chooses its network calls as it goes, but a scheduler must list them first; "
            "PNDMPipeline and solve can run it"
        )
    if from_noise and not one_call(method):
        able = ", ".join(name for name in METHODS if one_call(name))
        raise ValueError(
            f"method {method} cannot start where x is noise alone, as in flow matching and with "
            f"rescale_betas_zero_snr: it combines several calls of one step, divided by √ᾱ = 0. These can: {able}"
        )
    if whole_timesteps and not halves_alone(method):
        raise ValueError(f"method {method} has calls between whole times; whole_timesteps must be off")


def spacing_of(config: Config) -> str:
    """The name in `NAMES` that a configuration asks for."""
    if config["use_karras_sigmas"]:
        return "karras"
    return "logsnr" if config["use_exponential_sigmas"] else str(config["timestep_spacing"])


def nodes_of(config: Config, steps: int, schedule: Schedule) -> list[float]:
    """The times of n steps, by their spacing; `THEIRS` are diffusers' (Lin et al. 2024, table 2), rounded as there."""
    grid_of(schedule, steps)  # raises ValueError for a number of steps that cannot be run
    spacing, total = spacing_of(config), schedule.diffusion_step
    offset = whole("steps_offset", config["steps_offset"]) if spacing in ("uniform", "leading") else 0
    if spacing == "leading":
        return [float(k * (total // steps) + offset) for k in reversed(range(steps))]
    if spacing == "trailing":
        return [float(t) for t in np.arange(total, 0, -total / steps)[:steps].round() - 1]
    if spacing == "linspace":
        return [float(t) for t in np.linspace(0, total - 1, steps).round()[::-1]]
    limits = {}
    if spacing in LIMITED and config["rescale_betas_zero_snr"]:
        limits["first"] = float(schedule.time(-math.log(MOST_SIGMA)))
    return [t + offset for t in SPACINGS[spacing](steps, schedule, **limits)]


def rounded(nodes: list[float], method: str, end: float, schedule: Schedule) -> list[float]:
    """The times as whole numbers, for pipelines that take a time for an index.

    Where stages lie in the middle of the first steps, these become even lengths, by 1 at most.
    """
    found: list[float] = np.round(nodes).tolist()
    if not falling(found):
        return found
    steps = [asked for span in spans(method, [*found, end]) for asked in span.calls(schedule)]
    if all(call.t == int(call.t) for asked in steps for call in asked):
        return found
    last = max(k for k, asked in enumerate(steps) if len(asked) > 1) + 1
    level = [*found, end][last]
    return [t - (t - level) % 2 if k < last else t for k, t in enumerate(found)]


def steps_of_calls(listed: list[float], method: str, end: float, schedule: Schedule) -> list[float]:
    """The times of the steps, if `listed` are the network calls of a run, as `timesteps` lists them; else `listed`."""
    inside = all(0 <= t <= schedule.diffusion_step - 1 for t in listed)
    if one_call(method) or not inside or not listed or (len(listed) > 1 and listed[0] <= listed[-1]):
        return listed

    def counts(steps: int) -> list[int]:
        """The number of calls of each step of a run of so many."""
        some = [*np.linspace(listed[0], listed[-1], steps).tolist(), end] if steps > 1 else [listed[0], end]
        return [len(asked) for span in spans(method, some) for asked in span.calls(schedule)]

    able = range(1, len(listed) + 1)
    steps = 1 + bisect_left(able, len(listed), key=lambda steps: sum(counts(steps)))  # more steps are more calls
    if steps in able and sum(found := counts(steps)) == len(listed):
        nodes = [listed[place] for place in np.cumsum([0, *found[:-1]])]
        if falling(nodes):
            calls = [float(call.t) for call in calls_of(method, [*nodes, end], schedule)]
            if np.allclose(calls, listed, rtol=1e-6, atol=1e-4):
                return nodes
    return listed


def flow_sigmas(config: Config, steps: int, sigmas: Sequence[float] | None, mu: float | None) -> NDArray[np.float64]:
    """The σ of n steps, falling, by the settings of FlowMatchEulerDiscreteScheduler. Raises ValueError.

    sigmas: before they are shifted; None: equal steps from 1 to 1/N. mu: the shift where `use_dynamic_shifting` is on.
    """
    least = 1 / config["num_train_timesteps"]
    dynamic, shift = config["use_dynamic_shifting"], config["shift"]
    if dynamic:
        if mu is None:
            raise ValueError("use_dynamic_shifting is on; set_timesteps needs mu, the shift for this size of image")
        if not isinstance(mu, Real):
            raise ValueError(f"mu is {mu!r}, it must be a number")
        shift = np.exp(mu) if config["time_shift_type"] == "exponential" else mu

    def shifted(sigma: Any) -> Any:
        return shift * sigma / (1 + (shift - 1) * sigma)

    if sigmas is not None:
        found = np.array(sigmas, dtype=np.float64)
    elif config["use_flow_sigmas"]:
        found = np.linspace(1, least, steps + 1)[:-1]
    else:  # diffusers shifts the least σ, and then all of them
        found = np.linspace(1, least if dynamic else shifted(least), steps)
    found = shifted(found)
    if config["shift_terminal"]:
        found = 1 - (1 - found) * (1 - config["shift_terminal"]) / (1 - found[-1])
    power = {"karras": 1 / 7, "logsnr": 0.0}.get(spacing_of(config))
    if power:
        return np.asarray(np.linspace(found[0] ** power, found[-1] ** power, len(found)) ** (1 / power))
    return np.geomspace(found[0], found[-1], len(found)) if power == 0 else found


def all_times(config: Config, schedule: Schedule) -> list[float]:
    """The times that the network was trained at, falling; those of flow matching by its shift, if that is fixed."""
    total = schedule.diffusion_step
    if not isinstance(schedule, FlowSchedule):
        return [float(t) for t in range(total - 1, -1, -1)]
    shift = 1.0 if config["use_dynamic_shifting"] else config["shift"]
    sigmas = np.arange(total, 0, -1) / total
    return [float(t) for t in total * shift * sigmas / (1 + (shift - 1) * sigmas)]


def step_times(
    config: Config, schedule: Schedule, end: float, steps: int | None, timesteps: Any, sigmas: Any, mu: float | None
) -> list[float]:
    """The times that the steps of a run begin at, by the arguments of `set_timesteps`. Raises ValueError."""
    flow, total = isinstance(schedule, FlowSchedule), schedule.diffusion_step
    if sigmas is not None:
        found = _from_sigmas(config, schedule, floats("sigmas", sigmas), mu)
    elif timesteps is not None:
        found = steps_of_calls(floats("timesteps", timesteps), config["method"], end, schedule)
    elif steps is None:
        raise ValueError("set_timesteps takes num_inference_steps, timesteps or sigmas")
    elif flow:
        if not 1 <= whole("num_inference_steps", steps) <= total:
            raise ValueError(f"{steps} steps cannot be run; a whole number from 1 to {total} can")
        found = (flow_sigmas(config, steps, None, mu) * total).tolist()
    else:
        found = nodes_of(config, whole("num_inference_steps", steps), schedule)
        if takes_whole(config):
            even = rounded(found, config["method"], end, schedule)
            if falling(even):
                found = even
            elif config["whole_timesteps"]:
                raise ValueError(f"{config['method']} has no {steps} steps at whole times; turn whole_timesteps off")
    last = schedule.last
    if not found or not falling(found) or not 0 <= found[-1] <= found[0] <= last or (flow and found[-1] == 0):
        shown = ", ".join(f"{t:g}" for t in found[:4]) + (", …" if len(found) > 4 else "")
        raise ValueError(
            f"the times of the steps must fall from {last} at most to {'above 0' if flow else '0 at least'}; "
            f"they are {shown or 'none'}"
        )
    if steps not in (None, len(found)):
        raise ValueError(f"num_inference_steps is {steps}, but {len(found)} steps are given")
    return found


def told_times(timesteps: Any, count: int, schedule: Schedule) -> list[float]:
    """What the network is told in each of `count` calls, in place of the times of x. Raises ValueError."""
    found = floats("timesteps", timesteps)
    if len(found) != count:
        raise ValueError(f"{len(found)} timesteps are given for {count} sigmas")
    last = schedule.last
    if sorted(found, reverse=True) != found or not 0 <= found[-1] <= found[0] <= last:
        raise ValueError(f"timesteps must fall from {last} at most to 0 at least; they are {found}")
    return found


def _from_sigmas(config: Config, schedule: Schedule, sigmas: list[float], mu: float | None) -> list[float]:
    flow = isinstance(schedule, FlowSchedule)
    sigmas = sigmas[:-1] if sigmas[-1:] == [0.0] else sigmas
    most = 1.0 if flow else float(schedule.rho(schedule.diffusion_step - 1)) * 1.001
    if not sigmas or not all(0 < sigma <= most for sigma in sigmas):
        raise ValueError(f"sigmas must be numbers above 0, {most:.4g} at most, not {sigmas}")
    if flow:
        found = flow_sigmas(config, len(sigmas), sigmas, mu) * schedule.diffusion_step
        return [float(t) for t in found]
    found = schedule.time(-np.log(sigmas))
    return [0.0 if -0.01 < t < 0 else float(t) for t in found]  # σ of t = 0 may be rounded


def step_options(method: str | Method, eta: float) -> dict[str, float]:
    """What is asked of the method in one step. Raises ValueError."""
    option = OPTIONS["eta"]
    if not eta:
        return {}
    if "eta" not in method_named(method).options:
        able = ", ".join(name for name, line in METHODS.items() if "eta" in line.options)
        raise ValueError(f"eta is {eta!r}, but method {method} has none; these do: {able}")
    if not option.allows(eta):
        raise ValueError(f"eta is {eta!r}, it must be {option.allowed}")
    return {"eta": float(eta)}
