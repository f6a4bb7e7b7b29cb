"""The method PF: the probability-flow ODE by Dormand–Prince 5(4), every image with its own step size.

Reference: Hairer, Nørsett, Wanner, "Solving Ordinary Differential Equations I", section II.4 (automatic step size
control, starting step size); the tableau is II.5, table 5.2, as SciPy's RK45 has it. It is written here because it is
driven from outside, like every other method. Libraries that control the error of each image call the network
themselves.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pndm.runner.solver.events import Gradient, Method, NotFinite, Query, Step, Trajectory
from pndm.runner.solver.transfer import flow
from pndm.runner.solver.weights import combine

if TYPE_CHECKING:
    from torch import Tensor

    from pndm.runner.solver.schedule import Schedule

Times: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Adaptive(Method):
    """PF (Song et al. 2021): as many calls as the tolerances take. Options rtol, atol: the tolerances on x.

    The time falls from 1 to 1e-3 in units of N training steps. 1 is t = N−1, and 0 is clean data. Every image has its
    own error control, so that it depends on no other.
    """

    adaptive = True

    @property
    def options(self) -> frozenset[str]:
        return frozenset({"rtol", "atol"})

    def trajectory(self, x: "Tensor", schedule: "Schedule", grid: Sequence[float], **options: Any) -> Trajectory:
        total = schedule.diffusion_step
        end = max(0.0, total * 1e-3 - 1)  # t = 0 if there are few training steps
        return dormand_prince(flow_of(schedule), x, total - 1.0, end, Control(options["rtol"], options["atol"]))


@dataclass(frozen=True)
class Flow:
    """The probability flow in the time of an integrator, which falls.

    alpha, slope: ᾱ and ᾱ′/ᾱ at an array of times. clock: these times → the t that the network is told.
    """

    alpha: Callable[[Times], Times]
    slope: Callable[[Times], Times]
    clock: Callable[[Times], Times]

    def derivative(self, x: "Tensor", time: Times) -> Gradient:
        """dx/dtime of x (m, …) at times (m,): asks for ε once."""
        eps = yield Query(x, self.clock(time))
        slope: Tensor = flow(x, eps, column(self.alpha(time), x), column(self.slope(time), x))
        return slope


def flow_of(schedule: "Schedule") -> Flow:
    """The flow of a schedule in t itself."""
    return Flow(schedule.alpha_cumprod, lambda t: schedule.log_alpha_cumprod(t, nu=1), lambda t: t)


@dataclass(frozen=True)
class Control:
    """Step-size control: the error of a step is compared with atol + rtol·|x|, for each image or for all (joint)."""

    rtol: float
    atol: float
    joint: bool = False

    def scale(self, size: "Tensor") -> "Tensor":
        """The allowed error of each value of an x of this absolute size."""
        return self.atol + self.rtol * size

    def norm(self, values: "Tensor") -> Times:
        """Root mean square over each image (m,); the one over all images if they are controlled jointly."""
        squares: Times = (values.double() ** 2).flatten(1).mean(1).cpu().numpy()
        return np.sqrt(np.full_like(squares, squares.mean()) if self.joint else squares)


def dormand_prince(flow: Flow, x: "Tensor", start: float, end: float, control: Control) -> Trajectory:
    """Integrate the flow from x (n, …) at time `start` down to time `end`.

    Images that have arrived are not asked about again. Raises NotFinite if ε is not finite, or if the step size
    vanishes.
    """
    t = np.full(len(x), float(start))
    k1 = yield from flow.derivative(x, t)
    h = yield from starting_step(flow, x, k1, t, start - end, control)
    rejected = np.zeros(len(x), bool)
    while (running := np.flatnonzero(t > end)).size:
        s = np.maximum(t[running] - h[running], end)
        step = t[running] - s
        x0 = x[running]
        x1, stages = yield from dormand_prince_step(flow, x0, k1[running], t[running], s)

        error = control.norm(error_estimate(x0, step, stages) / control.scale(x0.abs().maximum(x1.abs())))
        check_finite(error, flow, t[running], s)
        accepted = error < 1
        h[running] = step * step_factor(error, rejected[running])
        rejected[running] = ~accepted

        done = running[accepted]
        x, k1 = x.clone(), k1.clone()
        x[done], k1[done] = x1[accepted], stages[-1][accepted]
        t[done] = s[accepted]
        if (h < 10 * np.spacing(np.abs(t)))[t > end].any():
            raise NotFinite(
                f"the step size vanished at t = {flow.clock(t).max():g}; "
                f"the flow cannot be followed to rtol {control.rtol}"
            )
        if done.size:
            yield Step(x, t.copy(), order=len(stages) - 1)


def starting_step(
    flow: Flow, x: "Tensor", k1: "Tensor", t: Times, longest: float, control: Control
) -> Generator[Query, Any, Times]:
    """The first step size of each image: h₁ of an explicit Euler step h₀ (Hairer et al., II.4, "Starting Step Size").

    h₀ = 0.01 d₀/d₁ with d₀ = |x|, d₁ = |x′|; h₁ = (0.01 / max(d₁, d₂))^(1/5) with d₂ = |x″|; h = min(100 h₀, h₁).
    """
    scale = control.scale(x.abs())
    d0, d1 = control.norm(x / scale), control.norm(k1 / scale)
    check_finite(d1, flow, t, t)
    h0 = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / np.maximum(d1, 1e-300))
    h0 = np.minimum(h0, longest)
    probe = yield from flow.derivative(x - column(h0, x) * k1, t - h0)
    largest = np.maximum(d1, control.norm((probe - k1) / scale) / h0)
    check_finite(largest, flow, t, t - h0)
    h1 = np.where(largest <= 1e-15, np.maximum(1e-6, h0 * 1e-3), (0.01 / np.maximum(largest, 1e-300)) ** 0.2)
    h: Times = np.minimum(np.minimum(100 * h0, h1), longest)
    return h


def dormand_prince_step(
    flow: Flow, x0: "Tensor", k1: "Tensor", t: Times, s: Times
) -> "Generator[Query, Any, tuple[Tensor, list[Tensor]]]":
    """One step from times t to s: x at s, and the stages k₁ … k₇. The last is the derivative at s."""
    from scipy.integrate import RK45  # here, since `--help` need not wait for it

    step = t - s
    stages = [k1]
    for a, c in zip(RK45.A[1:], RK45.C[1:], strict=True):
        stages.append((yield from flow.derivative(move(x0, -step, a[: len(stages)], stages), t - c * step)))
    x1 = move(x0, -step, RK45.B, stages)
    stages.append((yield from flow.derivative(x1, s)))
    return x1, stages


def error_estimate(x0: "Tensor", step: Times, stages: "Sequence[Tensor]") -> "Tensor":
    """The difference between the results of order 5 and 4, up to its sign."""
    from scipy.integrate import RK45

    return move(x0 * 0, step, RK45.E, stages)


def step_factor(error: Times, rejected: NDArray[np.bool_]) -> Times:
    """The factor of the next step size: 0.9 · error^(−1/5), from 0.2 to 10; at most 1 where a step was rejected.

    error: of the step just tried, accepted below 1. rejected: whether the try before it was rejected.
    """
    factor = 0.9 * np.maximum(error, 1e-300) ** -0.2
    largest = np.where((error < 1) & ~rejected, 10.0, 1.0)
    return np.clip(factor, 0.2, largest)


def move(x: "Tensor", h: Times, weights: Sequence[float], stages: "Sequence[Tensor]") -> "Tensor":
    """x + h Σᵢ wᵢ kᵢ, without the stages of weight 0."""
    used = [i for i, weight in enumerate(weights) if weight]
    total: Tensor = combine([weights[i] for i in used], [stages[i] for i in used])
    return x + column(h, x) * total


def column(values: Times, x: "Tensor") -> "Tensor":
    """(m,) float64 → a tensor like x that broadcasts over the images (m, …)."""
    return x.new_tensor(values).reshape(-1, *[1] * (x.ndim - 1))


def check_finite(norms: Times, flow: Flow, later: Times, earlier: Times) -> None:
    if not np.isfinite(norms).all():
        raise NotFinite(f"ε is not finite between t = {flow.clock(later).max():g} and {flow.clock(earlier).min():g}")
