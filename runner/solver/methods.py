"""The methods of the paper and those that came after: gradient part × transfer part over a grid of times.

A method is two choices: how the predictions at several times are combined (the gradient part: a rule of
`runner.weights`, and the starting steps or stages) and how x moves (the transfer part: `Pseudo`, `Data` or
`Classical`). `METHODS` is the whole table.

A method asks, it never calls: it is a generator that yields `Query(x, t)` and is sent ε, yields `Draw(x)` and is sent
noise, and yields `Step(x, t)` whenever a step is done. `solve` answers with a network and counts what it is asked.

Paper: Liu, Ren, Lin, Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", ICLR 2022,
arXiv:2202.09778; its Eq. (9) is `transfer.phi`, Eqs. (12) and (13) are the combinations, Algorithm 2 is `multistep`.
"""

import math
import numbers
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pndm.runner.solver import weights
from pndm.runner.solver.adaptive import dormand_prince
from pndm.runner.solver.events import Draw, Query, Step
from pndm.runner.solver.grid import counts, grid_of
from pndm.runner.solver.transfer import Classical, Data, Pseudo, PublishedClassical, PublishedSchedule, phi
from pndm.runner.solver.weights import combine

if TYPE_CHECKING:
    from pndm.runner.solver.schedule import Schedule
    from torch import Tensor

PROFILES = ("exact", "published")


class State(NamedTuple):
    """One state of `solve`: x (n, …) at time t; nfe, the network calls per image spent so far."""

    x: Any
    t: Any
    nfe: float


def improved_euler(part, x, t, s):
    """Start of S-PNDM: the mean of the gradients at both ends. Returns (combination, first gradient)."""
    first = yield from part.gradient(x, t, (x, t))
    last = yield from part.gradient(part.transfer(x, first, t, s), s, (x, t))
    return (first + last) / 2, first


def runge_kutta(part, x, t, s):
    """Start of F-PNDM and FON: the four stages of the classical Runge–Kutta method."""
    middle = (t + s) / 2
    g1 = yield from part.gradient(x, t, (x, t))
    g2 = yield from part.gradient(part.transfer(x, g1, t, middle), middle, (x, t))
    g3 = yield from part.gradient(part.transfer(x, g2, t, middle), middle, (x, t))
    g4 = yield from part.gradient(part.transfer(x, g3, t, s), s, (x, t))
    return (g1 + 2 * g2 + 2 * g3 + g4) / 6, g1


def midpoint(part, x, t, s):
    """DPM-Solver-2's step: the gradient halfway in λ."""
    middle = part.between(t, s, 1 / 2)
    g1 = yield from part.gradient(x, t, (x, t))
    g2 = yield from part.gradient(part.transfer(x, g1, t, middle), middle, (x, t))
    return g2, g1


def kutta(part, x, t, s):
    """DPM-Solver-3's step: stages at a third and two thirds in λ, each by the line through the first and the last."""
    rule = weights.in_lambda(weights.exact)
    third, two_thirds = part.between(t, s, 1 / 3), part.between(t, s, 2 / 3)
    g1 = yield from part.gradient(x, t, (x, t))
    g2 = yield from part.gradient(part.transfer(x, g1, t, third), third, (x, t))
    line = combine(rule(part, (t, third), t, two_thirds), (g1, g2))
    g3 = yield from part.gradient(part.transfer(x, line, t, two_thirds), two_thirds, (x, t))
    return combine(rule(part, (t, two_thirds), t, s), (g1, g3)), g1


def multistep(part, x, grid, order, start, starts, rule, taper):
    """Algorithm 2: `starts` starting steps (order − 1 in the paper), then the combination of that order by `rule`.

    Without them, lower orders are the start. Only the first gradient of a starting step enters the history. A step into
    clean data (ᾱ = 1) is never a starting step, since no ε exists there: it takes whatever order the history allows.
    taper: the last steps take no higher order than steps are left.
    """
    times = history = ()
    for number, (t, s) in enumerate(pairwise(grid), 1):
        if start and number <= starts and part.alpha(s) < 1:
            gradient, first = yield from start(part, x, t, s)
            times, history = (t, *times), (first, *history)
        else:
            first = yield from part.gradient(x, t, (x, t))
            times, history = (t, *times)[:order], (first, *history)[:order]
            used = min(len(history), len(grid) - number) if taper else len(history)
            gradient = combine(rule(part, times[:used], t, s), history[:used])
        x = part.transfer(x, gradient, t, s)
        yield Step(x, s)


def singlestep(part, x, grid, step):
    """The same step all along, but for the one into clean data, which is DDIM's."""
    for t, s in pairwise(grid):
        if part.alpha(s) < 1:
            gradient, _ = yield from step(part, x, t, s)
        else:
            gradient = yield from part.gradient(x, t, (x, t))
        x = part.transfer(x, gradient, t, s)
        yield Step(x, s)


def predictor_corrector(part, x, grid, order, rule):
    """UniPC (algorithms 1 and 2 there): once the gradient at a step's end is known, the step is taken again with it.

    The gradient stays that at the predicted x, so that a step is one call. The states that are reported are the
    predicted ones, of which the last is the result; what is changed in one from outside stays changed.
    """
    times, history, before, predicted, used = (), (), None, None, 0
    for left, (t, s) in zip(range(len(grid) - 1, 0, -1), pairwise(grid), strict=True):
        gradient = yield from part.gradient(x, t, (x, t))
        if history:
            corrected = combine(rule(part, (t, *times[:used]), times[0], t), (gradient, *history[:used]))
            x = part.transfer(before, corrected, times[0], t) + (x - predicted)
        times, history = (t, *times)[:order], (gradient, *history)[:order]
        used = min(len(history), left)
        before, gradient = x, combine(rule(part, times[:used], t, s), history[:used])
        x = part.transfer(x, gradient, t, s)
        predicted = x.clone()
        yield Step(x, s)


def ancestral(part, x, grid, eta):
    """DDIM's Eq. (12) with its σ(η) of Eq. (16), from the predicted image; ε is what that image leaves of x."""
    for t, s in pairwise(grid):
        data = yield from part.gradient(x, t, (x, t))
        a, b = part.alpha(t), part.alpha(s)
        sigma = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        eps = (x - math.sqrt(a) * data) / math.sqrt(1 - a)
        x = math.sqrt(b) * data + math.sqrt(max(0.0, 1 - b - sigma**2)) * eps
        if sigma > 0:
            x = x + sigma * (yield Draw(x))
        yield Step(x, s)


class Method:
    """What every line of the table is: `options` of its own, and whether it chooses its steps and draws noise."""

    adaptive = False
    part = None

    @property
    def options(self):
        return self.part.options

    def draws(self, **options):
        return False


@dataclass(frozen=True)
class Multistep(Method):
    """Order of the combination, starting step (None: lower orders), transfer part, rule of the weights, taper.

    starts: number of starting steps, order − 1 unless a run begins behind some of them (`resume`).
    """

    order: int
    start: Callable | None
    part: type
    rule: Callable = weights.equal_steps
    taper: bool = False
    starts: int | None = None

    def trajectory(self, x, schedule, grid, profile, **options):
        """A generator of queries and steps over `grid`; x (n, …) starts at its first time."""
        part = self.part
        if profile == "published":
            schedule = PublishedSchedule(schedule)
            part = PublishedClassical if part is Classical else part
        part, starts = part(schedule, **options), self.order - 1 if self.starts is None else self.starts
        return multistep(part, x, grid, self.order, self.start, starts, self.rule, self.taper)


@dataclass(frozen=True)
class Singlestep(Method):
    """Step and transfer part."""

    step: Callable
    part: type = Pseudo

    def trajectory(self, x, schedule, grid, profile):
        return singlestep(self.part(schedule), x, grid, self.step)


@dataclass(frozen=True)
class PredictorCorrector(Method):
    """Order of the predictor and rule of the weights."""

    order: int
    rule: Callable
    part: type = Data

    def trajectory(self, x, schedule, grid, profile, **options):
        return predictor_corrector(self.part(schedule, **options), x, grid, self.order, self.rule)


@dataclass(frozen=True)
class Ancestral(Method):
    """DDIM's family (Song, Meng, Ermon 2021, arXiv:2010.02502). n calls for n steps; order 1, with noise weakly.

    eta: from 0, no noise and then φ, to 1, DDPM (Ho et al. 2020) with the posterior's variance; an option unless it is
    given here.
    """

    eta: float | None = None

    @property
    def options(self):
        return Data.options | ({"eta"} if self.eta is None else frozenset())

    def draws(self, eta=0.0, **options):
        return (eta if self.eta is None else self.eta) > 0

    def trajectory(self, x, schedule, grid, profile, eta=0.0, clip=False, threshold=None):
        eta = eta if self.eta is None else self.eta
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}, it must be from 0 to 1")
        if not eta and not clip and threshold is None:
            return Multistep(order=1, start=None, part=Pseudo).trajectory(x, schedule, grid, profile)
        if profile == "published":
            raise ValueError("profile 'published' takes no eta, clip or threshold; they need profile 'exact'")
        return ancestral(Data(schedule, clip, threshold), x, grid, eta)


@dataclass(frozen=True)
class Adaptive(Method):
    """PF: the probability-flow ODE by Dormand–Prince 5(4) (Song et al. 2021), as many calls as the tolerances take.

    The time runs from 1 to 1e-3 in units of N training steps, unit 1 being t = N−1 and 0 being clean data.
    Options: rtol, atol, the tolerances on x (default 1e-5, as in the paper). Every image has its own step size
    and error control, so that it depends on no other. The profile "published" has one for the whole batch,
    takes ᾱ from the closed form for linear β whatever the schedule is, and fixes the tolerances.
    """

    options = frozenset({"rtol", "atol"})
    adaptive = True

    def trajectory(self, x, schedule, grid, profile, rtol=1e-5, atol=1e-5):
        total = schedule.diffusion_step
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}, it must be a positive number")
        if profile == "published":
            if (rtol, atol) != (1e-5, 1e-5):
                raise ValueError("profile 'published' has fixed tolerances; rtol and atol need profile 'exact'")
            first, last = schedule.betas[0], schedule.betas[-1]

            def slope(tau):
                return -total * (first + tau * (last - first))

            def alpha(tau):
                return np.exp(-total * (tau * first + tau**2 / 2 * (last - first)))

            return dormand_prince(alpha, slope, lambda tau: tau * (total - 1), x, 1.0, 1e-3, rtol, atol, joint=True)

        def slope(t):
            return schedule.log_alpha_cumprod(t, nu=1)

        end = max(0.0, total * 1e-3 - 1)  # of few training steps the last
        return dormand_prince(schedule.alpha_cumprod, slope, lambda t: t, x, total - 1.0, end, rtol, atol)


def ipndm(order):
    """F-PNDM without its start (Zhang & Chen 2023, arXiv:2204.13902). n calls for n steps; order 2, the transfer's."""
    return Multistep(order, None, Pseudo)


def deis(rule, degree, taper=False):
    """DEIS's AB of that degree (Zhang & Chen 2023, arXiv:2204.13902, Eq. (15)). n calls; order degree + 1."""
    return Multistep(degree + 1, None, Pseudo, rule, taper)


def heun():
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 1. 2n − 1 calls for n steps; order 2."""
    return Singlestep(improved_euler)


def dpm_solver_2s():
    """Lu et al. 2022 (arXiv:2206.00927), algorithm 1. 2n − 1 calls for n steps; order 2."""
    return Singlestep(midpoint)


def dpm_solver_3s():
    """Lu et al. 2022 (arXiv:2206.00927), algorithm 2. 3n − 2 calls for n steps; order 3."""
    return Singlestep(kutta)


def dpm_solver_m(order, part):
    """Lu et al. 2022b (arXiv:2211.01095): algorithm 2; at order 3 and for ε their code. n calls; order 2."""
    return Multistep(order, None, part, weights.in_lambda(weights.dpm_solver), taper=True)


def unipc(order, scale):
    """Zhao et al. 2023 (arXiv:2302.04867) with B(h) = scale(h). n calls for n steps; order + 1, by its corrector."""
    return PredictorCorrector(order, weights.in_lambda(weights.unipc(scale)))


LOGRHO = weights.in_lambda(weights.exact)

# Order is of the error on a given interval; of the combination alone where an Euler step at the start limits it to 2.
METHODS = {
    # Liu et al. 2022, the paper                                              calls for n steps (n > order); order
    "DDIM": Ancestral(),  #                                                   n; 1
    "S-PNDM": Multistep(order=2, start=improved_euler, part=Pseudo),  #       n + 1; 2
    "F-PNDM": Multistep(order=4, start=runge_kutta, part=Pseudo),  #          n + 9; 2
    "FON": Multistep(order=4, start=runge_kutta, part=Classical),  #          n + 9; 4
    "PF": Adaptive(),  #                                                      as many as the tolerances take
    # What came after
    "iPNDM2": ipndm(2),
    "iPNDM3": ipndm(3),
    "iPNDM4": ipndm(4),
    "DEIS-tAB1": deis(weights.in_t, 1),
    "DEIS-tAB2": deis(weights.in_t, 2),
    "DEIS-tAB3": deis(weights.in_t, 3),
    "DEIS-rhoAB1": deis(weights.in_rho, 1),
    "DEIS-rhoAB2": deis(weights.in_rho, 2),
    "DEIS-rhoAB3": deis(weights.in_rho, 3),
    "DEIS-logrhoAB1": deis(LOGRHO, 1, taper=True),
    "DEIS-logrhoAB2": deis(LOGRHO, 2, taper=True),
    "Heun": heun(),
    "DPM-Solver-2S": dpm_solver_2s(),
    "DPM-Solver-3S": dpm_solver_3s(),
    "DPM-Solver-2M": dpm_solver_m(2, Pseudo),
    "DPM-Solver-3M": dpm_solver_m(3, Pseudo),
    "DPM-Solver++2M": dpm_solver_m(2, Data),
    "DPM-Solver++3M": dpm_solver_m(3, Data),
    "UniPC2-bh1": unipc(2, lambda h: h),
    "UniPC2-bh2": unipc(2, math.expm1),
    "UniPC3-bh1": unipc(3, lambda h: h),
    "UniPC3-bh2": unipc(3, math.expm1),
    "DDPM": Ancestral(eta=1.0),
}
RELEASED = ("DDIM", "S-PNDM", "F-PNDM", "FON", "PF")  # what the profile "published" has


def method_named(name):
    """The line of `METHODS` of that name. Raises ValueError."""
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
    return METHODS[name]


def whole(name, value):
    """`value` as an int. Raises ValueError, saying what has the value, if it is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}, it must be a whole number") from None


def trajectory(
    method: str,
    x: "Tensor",
    schedule: "Schedule",
    steps: int,
    profile: str = "exact",
    spacing: str = "uniform",
    times: Sequence[float] | None = None,
    **options: Any,
) -> Generator[Query | Draw | Step, Any, Any]:
    """The generator of queries, draws and steps behind `solve`, for callers that answer them themselves.

    Arguments and errors are those of `solve`; a `Query` is sent ε, a `Draw` noise, a `Step` None.
    """
    line = method_named(method)
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is not one of {', '.join(PROFILES)}")
    if profile == "published" and method not in RELEASED:
        raise ValueError(f"profile 'published' is of the released code, which has {', '.join(RELEASED)} alone")
    if unknown := set(options) - line.options:
        raise ValueError(f"method {method} takes no option {', '.join(sorted(unknown))}")
    for name, value in options.items():
        if not isinstance(value, numbers.Real) and (name, value) != ("threshold", None):
            raise ValueError(f"{name} is {value!r}, it must be a number")
    steps = whole("steps", steps)
    if not x.dtype.is_floating_point or x.dtype.itemsize < 4:
        raise ValueError(f"x is {x.dtype}, it must be float32 or float64: a state in less loses the method's order")
    if not len(x):
        raise ValueError("x holds no images")
    if not line.adaptive:
        grid = grid_of(schedule, steps, profile, spacing, times)
    elif spacing == "uniform" and times is None:
        grid = None
    else:
        raise ValueError(f"method {method} chooses its own steps and takes no spacing or times")
    return line.trajectory(x, schedule, grid, profile, **options)


def drive(trajectory, answer):
    """The events of a trajectory, of which `answer(event)` answers each `Query` and `Draw`."""
    reply = None
    while True:
        try:
            event = trajectory.send(reply)
        except StopIteration:
            return
        yield event
        reply = None if isinstance(event, Step) else answer(event)


def calls(trajectory):
    """The times that a trajectory asks about in each of its steps, a list for every step; it is driven to its end."""
    steps = [[]]
    for event in drive(trajectory, lambda event: event.x):
        if isinstance(event, Query):
            steps[-1].append(event.t)
        elif isinstance(event, Step):
            steps.append([])
    return steps[:-1]


def nothing():
    """An x of the least size, float64 (1, 1), to drive a trajectory without images."""
    import torch  # which `--help` need not wait for

    return torch.zeros(1, 1, dtype=torch.float64)


def resume(method, x, schedule, grid, done=0):
    """The trajectory over `grid` from its network call number `done` on, x (n, …) being at the time of that call.

    It makes the calls that the whole trajectory would still make, at the same times. Gradients from before are not
    known: behind the starting steps the combination begins with order 1, and what is left of a starting step that
    is begun inside is taken as DDIM steps between the times of its calls.
    """
    line = METHODS[method]
    steps = calls(line.trajectory(nothing(), schedule, grid, "exact"))
    while done >= len(steps[0]):
        done -= len(steps[0])
        steps, grid = steps[1:], grid[1:]
    if done:
        for t, s in pairwise([*steps[0][done:], grid[1]]):
            eps = yield Query(x, t)
            x = phi(x, eps, schedule.alpha_cumprod(t), schedule.alpha_cumprod(s))
            yield Step(x, s)
        steps, grid = steps[1:], grid[1:]
    if isinstance(line, Multistep):
        line = replace(line, starts=sum(len(times) > 1 for times in steps))
    yield from line.trajectory(x, schedule, grid, "exact")


def solve(
    method: str,
    network: "Callable[[Tensor, Tensor], Tensor]",
    x: "Tensor",
    schedule: "Schedule",
    steps: int,
    profile: str = "exact",
    noise: "Callable[[int], Tensor] | None" = None,
    **options: Any,
) -> Iterator[State]:
    """Run a method from noise x; a generator of `State`s, one a step, of which the last is the result.

    method: a name in `METHODS`. network(x, t): x (n, C, H, W), t (n,) in training steps 0 … N−1, returns ε like x; its
    attribute `calls`, if it has one, is what one evaluation counts for. x: noise, float32 or float64, kept in its
    dtype and on its device. schedule: a `Schedule`. steps: their number, 1 … N (PF chooses its own and ignores it).
    profile: "exact", the paper, or "published", the released code with its quirks.
    noise(k): standard normal noise like x for step k = 0, 1, …, for the methods that draw it.
    options: spacing, a name in `runner.grid.SPACINGS`, or instead of it and of steps times, the falling list of them,
    of which the last is where x ends; and the method's own (PF: rtol, atol; DDIM: eta; what predicts data: clip,
    threshold).

    Raises ValueError on an argument outside these, before the network is called.
    """
    events = trajectory(method, x, schedule, steps, profile, **options)
    if noise is None and METHODS[method].draws(**options):
        raise ValueError(f"method {method} draws noise in its steps; `noise` must say which")
    return _states(events, network, len(x), noise)


def _states(events, network, images, noise):
    evaluated = done = 0

    def answer(event):
        nonlocal evaluated
        if isinstance(event, Draw):
            return noise(done)
        x, t = event
        times = x.new_tensor(t) if isinstance(t, np.ndarray) else x.new_full((1,), t).expand(len(x))
        evaluated += len(x) * getattr(network, "calls", 1)
        return network(x, times).to(x.dtype)

    for event in drive(events, answer):
        if isinstance(event, Step):
            nfe = evaluated / images
            yield State(event.x, event.t, int(nfe) if nfe.is_integer() else nfe)
            done += 1


def network_calls(method, schedule, steps, profile="exact", **options):
    """Network calls an image of a run, counted by driving it without a network. Arguments and errors as of `solve`."""
    return sum(map(len, calls(trajectory(method, nothing(), schedule, steps, profile, **options))))


def steps_for(method, nfe, schedule, profile="exact", **options):
    """The number of steps in which a method spends exactly `nfe` network calls an image.

    Raises ValueError naming the neighbours that can be spent, and on what `solve` does.
    """
    near = steps_near(method, nfe, schedule, profile, **options)
    for steps, spent in near:
        if spent == nfe:
            return steps
    near = " or ".join(f"{spent} in {steps} steps" for steps, spent in near)
    raise ValueError(f"method {method} cannot spend {nfe} network calls; it can spend {near}")


def steps_near(method, nfe, schedule, profile="exact", **options):
    """(steps, network calls) of a method: the least calls of `nfe` or more, before it the most calls below `nfe`.

    Either is left out where there is none. Raises ValueError on what `solve` does.
    """
    if method_named(method).adaptive:
        raise ValueError(f"method {method} spends what its tolerances take; nfe {nfe} cannot be asked of it")
    if options.get("times") is not None:
        raise ValueError("nfe and times exclude each other")
    able = counts(schedule.diffusion_step, profile)
    able = able[: bisect_right(able, nfe) + 1]  # a step spends a call at least

    def spent(steps):
        return network_calls(method, schedule, steps, profile, **options)

    place = bisect_left(able, nfe, key=spent)  # more steps spend more calls
    return [(steps, spent(steps)) for steps in able[max(0, place - 1) : place + 1]]
