"""The methods of the paper: gradient part × transfer part over a grid of times.

A method is two choices: how the ε's of several times are combined (the gradient part, `ADAMS_BASHFORTH` and
the starting steps) and how x moves (the transfer part, `Pseudo` or `Classical`). `METHODS` is the whole table.

A method asks, it never calls: it is a generator that yields `Query(x, t)` and is sent ε, and yields
`Step(x, t)` whenever a step is done. `solve` answers the queries with a network and counts them.

Paper: Liu, Ren, Lin, Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", ICLR 2022,
arXiv:2202.09778; its Eq. (9) is `phi`, Eqs. (12) and (13) are the combinations, Algorithm 2 is `multistep`.
"""

import math
import operator
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from runner.schedule import Schedule

PROFILES = ("exact", "published")

# Newest ε first; the k-step combination is exact for ε's that are polynomials of degree k−1 in t.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class Query(NamedTuple):
    """A request for ε(x, t): x (m, …), t one float for all images or a float64 array (m,)."""

    x: object
    t: object


class Step(NamedTuple):
    """x (n, …) as it stands at time t, after a step."""

    x: object
    t: object


class State(NamedTuple):
    """One state of `solve`: x (n, …) at time t; nfe, the network calls per image spent so far."""

    x: Any
    t: Any
    nfe: float


class NotFinite(ArithmeticError):
    """The network returned NaN or infinity; the message says when."""


def phi(x, eps, alpha_t, alpha_s):
    """Transfer x from noise level ᾱ_t to ᾱ_s along ε; paper Eq. (9). Exact whenever ε is.

    The weight of ε is written without the cancellation that √(1−ᾱ_s) − √(ᾱ_s(1−ᾱ_t)/ᾱ_t) suffers for close levels.
    """
    ratio = math.sqrt(alpha_s / alpha_t)
    weight = (alpha_t - alpha_s) / (
        math.sqrt(alpha_t) * (math.sqrt((1 - alpha_s) * alpha_t) + math.sqrt((1 - alpha_t) * alpha_s))
    )
    return ratio * x + weight * eps


class Pseudo:
    """Pseudo methods: the gradient is ε, and x moves with φ, along the manifold of noisy data."""

    def __init__(self, alpha, slope):
        self.alpha = alpha

    def gradient(self, x, t, origin):
        return (yield Query(x, t))

    def transfer(self, x, gradient, t, s):
        return phi(x, gradient, self.alpha(t), self.alpha(s))


class Classical:
    """Classical methods: the gradient is dx/dt of the probability-flow ODE, and x moves on a straight line."""

    def __init__(self, alpha, slope):
        self.alpha = alpha  # t → ᾱ(t)
        self.slope = slope  # t → d log ᾱ / dt

    def gradient(self, x, t, origin):
        eps = yield Query(x, t)
        return flow(x, eps, self.alpha(t), self.slope(t))

    def transfer(self, x, gradient, t, s):
        return x + (s - t) * gradient


class PublishedClassical(Classical):
    """FON of the released code: every stage's slope is one φ-step of length 1 from the *step's* x and t."""

    def gradient(self, x, t, origin):
        eps = yield Query(x, t)
        x, t = origin
        return x - phi(x, eps, self.alpha(t), self.alpha(t - 1))


def flow(x, eps, alpha, slope):
    """dx/dt = ᾱ′/(2ᾱ) · (x − ε/√(1−ᾱ)), with slope = ᾱ′/ᾱ."""
    return slope / 2 * (x - eps / (1 - alpha) ** 0.5)


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


def multistep(part, x, grid, order, start, starts):
    """Algorithm 2: `starts` starting steps (order − 1 in the paper), then Adams–Bashforth of that order.

    Only the first gradient of a starting step enters the history. A step into clean data (ᾱ = 1) is never a
    starting step, since no ε exists there: it takes Adams–Bashforth of whatever order the history allows.
    """
    history = ()
    for number, (t, s) in enumerate(pairwise(grid)):
        if number < starts and part.alpha(s) < 1:
            gradient, first = yield from start(part, x, t, s)
            history = (first, *history)
        else:
            first = yield from part.gradient(x, t, (x, t))
            history = (first, *history)[:order]
            gradient = combine(ADAMS_BASHFORTH[len(history)], history)
        x = part.transfer(x, gradient, t, s)
        yield Step(x, s)


def combine(weights, gradients):
    total = weights[0] * gradients[0]
    for weight, gradient in zip(weights[1:], gradients[1:], strict=True):
        total = total + weight * gradient
    return total


def exact_grid(steps, diffusion_step):
    """`steps` + 1 times: k·N/steps for k = steps−1 … 0, then −1. Real, so that the steps are equal for any count."""
    if not 1 <= steps <= diffusion_step:
        raise ValueError(f"{steps} steps cannot be run; a whole number from 1 to {diffusion_step} can")
    return [k * diffusion_step / steps for k in reversed(range(steps))] + [-1.0]


def published_grid(steps, diffusion_step):
    """The same at the counts where the released code runs the number it was asked for, an error elsewhere."""
    if steps < 1 or steps >= diffusion_step or diffusion_step % steps:
        able = [n for n in range(1, diffusion_step) if diffusion_step % n == 0]
        raise ValueError(f"profile 'published' cannot run {steps} steps; it can run {', '.join(map(str, able))}")
    return exact_grid(steps, diffusion_step)


GRIDS = {"exact": exact_grid, "published": published_grid}


@dataclass(frozen=True)
class Multistep:
    """A line of the table in the paper: order of the combination, starting step, transfer part.

    starts: number of starting steps, order − 1 unless a run begins behind some of them (`resume`).
    """

    order: int
    start: Callable | None
    part: type
    starts: int | None = None
    options = frozenset()
    adaptive = False

    def trajectory(self, x, schedule, grid, profile):
        """A generator of queries and steps over the times of `grid`; x (n, …) starts at the first of them."""
        if profile == "exact":
            part = self.part(schedule.alpha_cumprod, lambda t: schedule.log_alpha_cumprod(t, nu=1))
        else:  # ᾱ read one index late and truncated at half steps, so that t = −1 is ᾱ_0
            part_type = PublishedClassical if self.part is Classical else self.part
            part = part_type(lambda t: schedule.alphas_cumprod[int(t) + 1], None)
        starts = self.order - 1 if self.starts is None else self.starts
        return multistep(part, x, grid, self.order, self.start, starts)


@dataclass(frozen=True)
class Adaptive:
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

        end = total * 1e-3 - 1
        return dormand_prince(schedule.alpha_cumprod, slope, lambda t: t, x, total - 1.0, end, rtol, atol)


def dormand_prince(alpha, slope, clock, x, start, end, rtol, atol, joint=False):
    """Integrate the probability flow from time `start` down to `end`; clock: time → the t that the network is told.

    Step-size control is that of Hairer, Nørsett, Wanner, "Solving ODEs I", II.4, as in SciPy's RK45, whose
    tableau it takes. Images that have arrived are not asked about again. `joint`: one control for all images.
    Written here because it is driven from outside like every other method, image by image; the libraries that
    control the error per image call the network themselves.
    """
    from scipy.integrate import RK45

    def column(values):  # (m,) float64 → a tensor like x that broadcasts over an image
        return x.new_tensor(values).reshape(-1, *[1] * (x.ndim - 1))

    def norm(values):  # root mean square over each image, or over all of them
        squares = (values.double() ** 2).flatten(1).mean(1).cpu().numpy()
        return np.sqrt(np.full_like(squares, squares.mean()) if joint else squares)

    def derivative(x, t):
        eps = yield Query(x, clock(t))
        return flow(x, eps, column(alpha(t)), column(slope(t)))

    def move(x, h, weights, stages):
        pairs = [(w, k) for w, k in zip(weights, stages, strict=True) if w]
        return x + column(h) * combine(*zip(*pairs, strict=True))

    def check_finite(norms, later, earlier):
        if not np.isfinite(norms).all():
            raise NotFinite(f"ε is not finite between t = {clock(later).max():g} and {clock(earlier).min():g}")

    t = np.full(len(x), float(start))
    k1 = yield from derivative(x, t)

    # The first step size: one that an explicit Euler step suggests.
    scale = atol + rtol * x.abs()
    d0, d1 = norm(x / scale), norm(k1 / scale)
    check_finite(d1, t, t)
    h = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / np.maximum(d1, 1e-300))
    h = np.minimum(h, start - end)
    probe = yield from derivative(x - column(h) * k1, t - h)
    curvature = np.maximum(d1, norm((probe - k1) / scale) / h)
    check_finite(curvature, t, t - h)
    guess = np.where(curvature <= 1e-15, np.maximum(1e-6, h * 1e-3), (0.01 / np.maximum(curvature, 1e-300)) ** 0.2)
    h = np.minimum(np.minimum(100 * h, guess), start - end)

    retried = np.zeros(len(x), bool)
    while (running := np.flatnonzero(t > end)).size:
        s = np.maximum(t[running] - h[running], end)
        step = t[running] - s
        x0, stages = x[running], [k1[running]]
        for a, c in zip(RK45.A[1:], RK45.C[1:], strict=True):
            x1 = move(x0, -step, a[: len(stages)], stages)
            stages.append((yield from derivative(x1, t[running] - c * step)))
        x1 = move(x0, -step, RK45.B, stages)
        stages.append((yield from derivative(x1, s)))

        scale = atol + rtol * x0.abs().maximum(x1.abs())
        error = norm(move(x0 * 0, step, RK45.E, stages) / scale)
        check_finite(error, t[running], s)
        good = error < 1
        factor = 0.9 * np.maximum(error, 1e-300) ** -0.2
        limit = np.where(good, np.where(retried[running], 1.0, 10.0), 1.0)
        h[running] = step * np.clip(factor, 0.2, limit)
        retried[running] = ~good

        done = running[good]
        x, k1 = x.clone(), k1.clone()
        x[done], k1[done] = x1[good], stages[-1][good]
        t[done] = s[good]
        if (h < 10 * np.spacing(np.abs(t)))[t > end].any():
            raise NotFinite(
                f"the step size vanished at t = {clock(t).max():g}; the flow cannot be followed to rtol {rtol}"
            )
        if done.size:
            yield Step(x, t.copy())


METHODS = {
    #                    combination      start           transfer            calls for n steps (n > order)
    "DDIM": Multistep(order=1, start=None, part=Pseudo),  #                   n
    "S-PNDM": Multistep(order=2, start=improved_euler, part=Pseudo),  #       n + 1
    "F-PNDM": Multistep(order=4, start=runge_kutta, part=Pseudo),  #          n + 9
    "FON": Multistep(order=4, start=runge_kutta, part=Classical),  #          n + 9
    "PF": Adaptive(),  #                                                      as many as the tolerances take
}


def method_named(name):
    """The line of `METHODS` of that name. Raises ValueError."""
    if name not in METHODS:
        raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
    return METHODS[name]


def whole(name, value):
    """`value` as an int. Raises ValueError, saying what has the value, if it is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}, it must be a whole number") from None


def trajectory(
    method: str, x: "Tensor", schedule: "Schedule", steps: int, profile: str = "exact", **options: Any
) -> Generator[Query | Step, Any, Any]:
    """The generator of queries and steps behind `solve`, for callers that answer the queries themselves.

    Arguments and errors are those of `solve`.
    """
    line = method_named(method)
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is not one of {', '.join(PROFILES)}")
    if unknown := set(options) - line.options:
        raise ValueError(f"method {method} takes no option {', '.join(sorted(unknown))}")
    steps = whole("steps", steps)
    if not x.dtype.is_floating_point or x.dtype.itemsize < 4:
        raise ValueError(f"x is {x.dtype}, it must be float32 or float64: a state in less loses the method's order")
    grid = None if line.adaptive else GRIDS[profile](steps, schedule.diffusion_step)
    return line.trajectory(x, schedule, grid, profile, **options)


def calls(method, schedule, grid):
    """The times that a method asks about in each step over `grid`: a list for every step, in order."""
    import torch  # which `--help` need not wait for

    events = METHODS[method].trajectory(torch.zeros(1, 1, dtype=torch.float64), schedule, grid, "exact")
    steps, answer = [[]], None
    while True:
        try:
            event = events.send(answer)
        except StopIteration:
            return steps[:-1]
        if isinstance(event, Step):
            steps.append([])
            answer = None
        else:
            if isinstance(event, Query):
                steps[-1].append(event.t)
            answer = event.x


def resume(method, x, schedule, grid, done=0):
    """The trajectory over `grid` from its network call number `done` on, x (n, …) being at the time of that call.

    It makes the calls that the whole trajectory would still make, at the same times. Gradients from before are not
    known: behind the starting steps Adams–Bashforth begins with order 1, and what is left of a starting step that
    is begun inside is taken as DDIM steps between the times of its calls.
    """
    steps, line = calls(method, schedule, grid), METHODS[method]
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
    **options: Any,
) -> Iterator[State]:
    """Run a method from noise x; a generator of `State`s, one a step, of which the last is the result.

    method: a name in `METHODS`. network(x, t): x (n, C, H, W), t (n,) in training steps 0 … N−1, returns ε like x.
    x: noise, float32 or float64, kept in its dtype and on its device. schedule: a `Schedule`.
    steps: their number, 1 … N (PF chooses its own and ignores it). profile: "exact", the paper, or "published",
    the released code with its quirks. options: the method's own (PF: rtol, atol).

    Raises ValueError on an argument outside these, before the network is called.
    """
    return _drive(trajectory(method, x, schedule, steps, profile, **options), network, len(x))


def _drive(events, network, images):
    evaluated, eps = 0, None
    while True:
        try:
            event = events.send(eps)
        except StopIteration:
            return
        if isinstance(event, Step):
            nfe = evaluated / images
            yield State(event.x, event.t, int(nfe) if nfe.is_integer() else nfe)
            eps = None
        else:
            x, t = event
            times = x.new_tensor(t) if isinstance(t, np.ndarray) else x.new_full((1,), t).expand(len(x))
            eps = network(x, times).to(x.dtype)
            evaluated += len(x)
