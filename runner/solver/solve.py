"""Run a method: `solve` with a network, `trajectory` driven by the caller, `network_calls` without a network."""

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pndm.runner.solver.events import Draw, Method, Query, Step, Time, Trajectory
from pndm.runner.solver.flow import FlowSchedule
from pndm.runner.solver.grid import grid_of
from pndm.runner.solver.methods import METHODS, method_named
from pndm.runner.solver.options import GRID_OPTIONS, OPTIONS, Option
from pndm.runner.solver.published import PROFILES, PUBLISHED, PublishedSchedule, published_counts, published_grid
from pndm.runner.solver.schedule import Schedule


class State(NamedTuple):
    """One state of `solve`: x (n, …) at time t; nfe, the network calls per image spent so far.

    Example:

        >>> import torch
        >>> from pndm import Schedule, solve
        >>> states = solve("F-PNDM", lambda x, t: x, torch.ones(2, 1), Schedule(), steps=10)
        >>> state = next(states)
        >>> tuple(state.x.shape), state.t, state.nfe
        ((2, 1), 800.0, 4)
    """

    x: Tensor
    t: Time
    nfe: float


def solve(
    method: str | Method,
    network: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    schedule: Schedule,
    steps: int,
    profile: str = "exact",
    noise: Callable[[int], Tensor] | None = None,
    **options: Any,
) -> Iterator[State]:
    """Run a method from noise x; a generator of `State`s, one a step. The last is the result.

    method: a name in `METHODS`, or a `Method` itself.
    network(x, t): x (m, …) and t (m,), in training steps 0 … N−1, of x's dtype; returns ε, a tensor like x. Two
        attributes of it are read, if they are there. `calls`: the network calls that one evaluation counts as (1).
        `broadcasts_time` = True: the network takes t of shape (1,) where all images are at one time.
    x: noise (n, …), float32 or float64. The states keep its dtype and device.
    schedule: a `Schedule` of N training steps.
    steps: their number, 1 … N. With PF, which chooses its own steps, and with `times` any whole number from 1 will do.
    profile: "exact", the paper, or "published", the released code with its quirks.
    noise(k): standard normal noise like x for step k = 0, 1, …; for the methods that draw noise.
    options: spacing, a name in `SPACINGS`; or, in place of spacing and steps, times: the falling list of times, the
        images being at the last. Those of the table `GRID_OPTIONS`, and the method's own, of the table `OPTIONS`.

    Raises ValueError for arguments outside these, before the network is called; and if ε or noise is not like x.
    Source: Algorithm 2 of the paper, for all methods of the table.

        >>> import torch
        >>> from pndm import Schedule, load_experiment, load_model, solve
        >>> experiment = load_experiment("digits.yml")
        >>> network = load_model(experiment.Model, experiment.Sample.model_path)
        >>> with torch.inference_mode():
        ...     *_, last = solve("F-PNDM", network, torch.randn(4, 1, 8, 8), Schedule(), steps=20)
        >>> tuple(last.x.shape), last.t, last.nfe
        ((4, 1, 8, 8), -1.0, 29)
    """
    events = trajectory(method, x, schedule, steps, profile, **options)
    if noise is None and method_named(method).draws(**options):
        raise ValueError(f"method {method} draws noise in its steps; the argument noise must give it")
    for name, value in (("network", network), ("noise", noise)):
        if not callable(value) and (name, value) != ("noise", None):
            raise ValueError(f"{name} is {value!r}, it must be a function")
    return _states(events, network, noise, len(x))


def _states(events: Trajectory, network: Any, noise: Any, images: int) -> Iterator[State]:
    evaluated = done = 0

    def answer(event: Query | Draw) -> Tensor:
        if isinstance(event, Draw):
            return like(event.x, noise(done), f"noise({done}) returned")
        return like(event.x, network(event.x, _times(event, network)), "the network returned")

    for event in drive(events, answer):
        if isinstance(event, Query):
            evaluated += len(event.x) * getattr(network, "calls", 1)
        elif isinstance(event, Step):
            nfe = evaluated / images
            yield State(event.x, event.t, int(nfe) if nfe.is_integer() else nfe)
            done += 1


def _times(query: Query, network: Any) -> Tensor:
    """t as the network takes it: (m,), or (1,) if all images are at one time and it broadcasts."""
    x, t = query
    if isinstance(t, np.ndarray):
        return x.new_tensor(t)
    return x.new_full((1,), t).expand(1 if getattr(network, "broadcasts_time", False) else len(x))


def like(x: Tensor, answer: Any, who: str) -> Tensor:
    """The answer in x's dtype. Raises ValueError unless it is a tensor of x's shape."""
    if not isinstance(answer, Tensor):
        raise ValueError(f"{who} {type(answer).__name__}, it must return a tensor like x, {tuple(x.shape)}")
    if answer.shape != x.shape:
        raise ValueError(f"{who} a tensor {tuple(answer.shape)}, it must be like x, {tuple(x.shape)}")
    return answer.to(x.dtype)


def trajectory(
    method: str | Method,
    x: Tensor,
    schedule: Schedule,
    steps: int,
    profile: str = "exact",
    spacing: str = "uniform",
    times: Sequence[float] | None = None,
    **options: Any,
) -> Trajectory:
    """The generator of queries, draws and steps behind `solve`, for callers that answer them themselves.

    A `Query` is sent ε, a `Draw` noise, a `Step` None. Arguments and errors are those of `solve`.

        >>> import torch
        >>> from pndm import Schedule, trajectory
        >>> next(trajectory("S-PNDM", torch.ones(1, 1), Schedule(), steps=10)).t  # its first `Query`
        900.0
    """
    line = method_named(method)
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is not one of {', '.join(PROFILES)}")
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule is a {type(schedule).__name__}, it must be a Schedule")
    if isinstance(schedule, FlowSchedule):
        raise ValueError("schedule is a FlowSchedule; MethodScheduler runs it, solve has no grid for it")
    if not isinstance(x, Tensor):
        raise ValueError(f"x is {type(x).__name__}, it must be a tensor (n, …) of float32 or float64")
    if not x.dtype.is_floating_point or x.dtype.itemsize < 4:
        raise ValueError(f"x is {x.dtype}, it must be float32 or float64: with less the methods lose their order")
    if not x.ndim or not len(x):
        raise ValueError(f"x is {tuple(x.shape)}, it must be (n, …) with one image or more")
    placing = {name: options.pop(name) for name in GRID_OPTIONS if name in options}
    changed, placed = _changed(method, options), _differing(placing, GRID_OPTIONS)
    steps = whole("steps", steps)
    custom_grid = spacing != "uniform" or times is not None or placed
    if line.adaptive and custom_grid:
        said = "".join(f" or {name}" for name in placed)
        raise ValueError(f"method {method} chooses its own steps and takes no spacing or times{said}")

    if profile == "published":
        if method not in PUBLISHED:
            raise ValueError(f"profile 'published' is of the released code, which has {', '.join(PUBLISHED)} alone")
        if changed:
            raise ValueError(
                f"profile 'published' takes no options and has fixed tolerances; {', '.join(changed)}: only with "
                "profile 'exact'"
            )
        if custom_grid:
            said = ", ".join(["spacing", "times", *placed])
            raise ValueError(f"profile 'published' has the uniform spacing alone; {said}: only with 'exact'")
        grid = [] if line.adaptive else published_grid(schedule, steps)
        return PUBLISHED[str(method)].trajectory(x, PublishedSchedule(schedule), grid)

    grid = [] if line.adaptive else grid_of(schedule, steps, spacing, times, **placing)
    if line.with_options and not changed:
        return line.trajectory(x, schedule, grid)
    defaults = {name: OPTIONS[name].default for name in line.options}
    return (line.with_options or line).trajectory(x, schedule, grid, **defaults | options)


def _changed(method: str | Method, options: dict[str, Any]) -> list[str]:
    """The names of the options that differ from their defaults. Raises ValueError for what the method cannot take."""
    for name in options:
        if name not in OPTIONS:
            able = [*method_named(method).options, "profile", "spacing", "times", *GRID_OPTIONS]
            raise ValueError(f"there is no option {name}; method {method} takes {', '.join(able)}")
        if name not in method_named(method).options:
            able = [other for other, line in METHODS.items() if name in line.options]
            raise ValueError(f"method {method} takes no option {name}; these do: {', '.join(able)}")
    differing = _differing(options, OPTIONS)
    if options.get("clip") and options.get("threshold") is not None:
        raise ValueError("clip and threshold exclude each other: a thresholded image is within [−1, 1]")
    return differing


def _differing(values: dict[str, Any], table: dict[str, Option]) -> list[str]:
    """The names of the values that differ from their defaults. Raises ValueError for values that are not allowed."""
    for name, value in values.items():
        if not table[name].allows(value):
            raise ValueError(f"{name} is {value!r}, it must be {table[name].allowed}")
    return [name for name, value in values.items() if value != table[name].default]


def whole(name: str, value: Any) -> int:
    """`value` as an int. Raises ValueError if it is no whole number; name: what it is called."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}, it must be a whole number") from None


def drive(events: Trajectory, answer: Callable[[Query | Draw], Tensor]) -> Iterator[Query | Draw | Step]:
    """The events of a trajectory. `answer(event)` gives ε for each `Query` and noise for each `Draw`."""
    reply = None
    while True:
        try:
            event = events.send(reply)
        except StopIteration:
            return
        yield event
        reply = None if isinstance(event, Step) else answer(event)


def rehearse(events: Trajectory) -> Iterator[tuple[list[Query], Step]]:
    """The steps of a trajectory without a network: the queries of each, and its `Step`."""
    asked: list[Query] = []
    for event in drive(events, lambda event: event.x):
        if isinstance(event, Query):
            asked.append(event)
        elif isinstance(event, Step):
            yield asked, event
            asked = []


def calls(events: Trajectory) -> list[list[Query]]:
    """The network calls in each step of a trajectory, one list a step. It is driven to its end."""
    return [asked for asked, _ in rehearse(events)]


def nothing() -> Tensor:
    """An x of one value, float64 (1, 1), to drive a trajectory without images."""
    return torch.zeros(1, 1, dtype=torch.float64)


def network_calls(method: str | Method, schedule: Schedule, steps: int, profile: str = "exact", **options: Any) -> int:
    """Network calls an image of a run, counted by driving it without a network. Arguments and errors as of `solve`."""
    return sum(map(len, calls(trajectory(method, nothing(), schedule, steps, profile, **options))))


def steps_for(method: str, nfe: int, schedule: Schedule, profile: str = "exact", **options: Any) -> int:
    """The number of steps in which a method spends exactly `nfe` network calls an image.

    Raises ValueError if there is none, with the nearest numbers of calls; and for what `solve` raises it.
    """
    near = steps_near(method, nfe, schedule, profile, **options)
    for steps, spent in near:
        if spent == nfe:
            return steps
    able = " or ".join(f"{spent} in {steps} steps" for steps, spent in near)
    raise ValueError(f"method {method} cannot spend {nfe} network calls; it can spend {able}")


def steps_near(
    method: str, nfe: int, schedule: Schedule, profile: str = "exact", **options: Any
) -> list[tuple[int, int]]:
    """(steps, network calls) of a method: the most calls below `nfe`, then the fewest calls of `nfe` or more.

    Either is left out where there is none. Raises ValueError for what `solve` raises it.
    """
    if method_named(method).adaptive:
        raise ValueError(f"method {method} spends what its tolerances take; nfe {nfe} cannot be asked of it")
    if options.get("times") is not None:
        raise ValueError("nfe and times exclude each other")
    total = schedule.diffusion_step
    able = published_counts(total) if profile == "published" else range(1, total + 1)
    able = able[: bisect_right(able, nfe) + 1]  # a step spends a call at least

    @cache
    def spent(steps: int) -> int:
        return network_calls(method, schedule, steps, profile, **options)

    place = bisect_left(able, nfe, key=spent)  # more steps spend more calls
    return [(steps, spent(steps)) for steps in able[max(0, place - 1) : place + 1]]
