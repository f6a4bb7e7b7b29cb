"""The method PF: the probability-flow ODE by Dormand–Prince 5(4), every image with its own step size.

Reference: Hairer, Nørsett, Wanner, "Solving Ordinary Differential Equations I", section II.4 (automatic step size
control, starting step size); the tableau is II.5, table 5.2, as SciPy's RK45 has it. It is written here because it is
driven from outside, like every other method. Libraries that control the error of each image call the network
themselves.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pndm.runner.solver.events import Gradient, Method, NotFinite, Query, Step, Tensor, Times, Trajectory
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.transfer import flow
from pndm.runner.solver.weights import combine


class Adaptive(Method):
    """PF (Song et al. 2021): as many calls as the tolerances take. Options rtol, atol: the tolerances on x.

    The time falls from 1 to 1e-3 in units of N training steps. 1 is t = N−1, and 0 is clean data. Every image has its
    own error control, so that it depends on no other.
    """

    adaptive = True
    options = frozenset({"rtol", "atol"})

    def trajectory(self, x: Tensor, schedule: Schedule, grid: Sequence[float], **options: Any) -> Trajectory:
        total = schedule.diffusion_step
        end = max(0.0, total * 1e-3 - 1)  # t = 0 if there are few training steps
        return dormand_prince(flow_of(schedule), x, total - 1.0, end, Control(**options))


@dataclass(frozen=True)
class Flow:
    """The probability flow in the time of an integrator, which falls.

    alpha, slope: ᾱ and ᾱ′/ᾱ at an array of times. clock: these times → the t that the network is told.
    """

    alpha: Callable[[Times], Any]
    slope: Callable[[Times], Any]
    clock: Callable[[Times], Times]

    def derivative(self, x: Tensor, time: Times) -> Gradient:
        """dx/dtime of x (m, …) at times (m,): asks for ε once."""
        eps = yield Query(x, self.clock(time))
        return flow(x, eps, column(self.slope(time) / 2, x), column(np.sqrt(1 - self.alpha(time)), x))

    def check_finite(self, norms: Times, later: Times, earlier: Times) -> None:
        if not np.isfinite(norms).all():
            span = f"between t = {self.clock(later).max():g} and {self.clock(earlier).min():g}"
            raise NotFinite(f"ε is not finite {span}")


def flow_of(schedule: Schedule) -> Flow:
    """The flow of a schedule in t itself."""
    return Flow(schedule.alpha_cumprod, lambda t: schedule.log_alpha_cumprod(t, nu=1), lambda t: t)


@dataclass(frozen=True)
class Control:
    """Step-size control: the error of a step is compared with atol + rtol·|x|, for each image or for all (joint)."""

    rtol: float
    atol: float
    joint: bool = False

    def norm(self, values: Tensor, size: Tensor) -> Any:
        """Root mean square of values/(atol + rtol·size) over each image (m,), or over all if they are joint."""
        scaled = values / (self.atol + self.rtol * size)
        scaled = scaled if scaled.device.type in ("cpu", "cuda") else scaled.cpu()  # others may have no float64
        squares = (scaled.double() ** 2).flatten(1).mean(1).cpu().numpy()
        return np.sqrt(np.full_like(squares, squares.mean()) if self.joint else squares)


def dormand_prince(flow: Flow, x: Tensor, start: float | Times, end: float, control: Control) -> Trajectory:
    """Integrate the flow from x (n, …) at time `start`, of all images or (n,) of each, down to time `end`.

    Images that have arrived are not asked about again. Raises NotFinite if ε is not finite, or if the step size
    vanishes.
    """
    t = np.full(len(x), start, np.float64)
    if not (t > end).any():
        yield Step(x, flow.clock(t), order=1)
        return
    k1 = yield from flow.derivative(x, t)
    h = yield from starting_step(flow, x, k1, t, start - end, control)
    rejected = np.zeros(len(x), bool)
    while (running := np.flatnonzero(t > end)).size:
        s = np.maximum(t[running] - h[running], end)
        x0 = x[running]
        x1, derivative, difference = yield from dormand_prince_step(flow, x0, k1[running], t[running], s)

        error = control.norm(difference, x0.abs().maximum(x1.abs()))
        flow.check_finite(error, t[running], s)
        accepted = error < 1
        # The next step size is smaller by no more than 5, larger by no more than 10, and not after a rejection.
        largest = np.where(accepted & ~rejected[running], 10.0, 1.0)
        h[running] = (t[running] - s) * np.clip(0.9 * np.maximum(error, 1e-300) ** -0.2, 0.2, largest)
        rejected[running] = ~accepted

        done = running[accepted]
        x, k1 = x.clone(), k1.clone()
        x[done], k1[done] = x1[accepted], derivative[accepted]
        t[done] = s[accepted]
        if (h < 10 * np.spacing(np.abs(t)))[t > end].any():
            raise NotFinite(
                f"the step size vanished at t = {flow.clock(t).max():g}; "
                f"the flow cannot be followed to rtol {control.rtol}, atol {control.atol}"
            )
        if done.size:
            yield Step(x, flow.clock(t.copy()), order=6)


def starting_step(
    flow: Flow, x: Tensor, k1: Tensor, t: Times, longest: float | Times, control: Control
) -> Generator[Query, Any, Any]:
    """The first step size of each image: h₁ of an explicit Euler step h₀ (Hairer et al., II.4, "Starting Step Size").

    h₀ = 0.01 d₀/d₁ with d₀ = |x|, d₁ = |x′|; h₁ = (0.01 / max(d₁, d₂))^(1/5) with d₂ = |x″|; h = min(100 h₀, h₁).
    """
    size = x.abs()
    d0, d1 = control.norm(x, size), control.norm(k1, size)
    flow.check_finite(d1, t, t)
    h0 = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / np.maximum(d1, 1e-300))
    h0 = np.minimum(h0, longest)
    probe = yield from flow.derivative(x - column(h0, x) * k1, t - h0)
    largest = np.maximum(d1, control.norm(probe - k1, size) / h0)
    flow.check_finite(largest, t, t - h0)
    h1 = np.where(largest <= 1e-15, np.maximum(1e-6, h0 * 1e-3), (0.01 / np.maximum(largest, 1e-300)) ** 0.2)
    return np.minimum(np.minimum(100 * h0, h1), longest)


def dormand_prince_step(
    flow: Flow, x0: Tensor, k1: Tensor, t: Times, s: Times
) -> Generator[Query, Any, tuple[Any, Any, Any]]:
    """One step from times t to s: x at s, the derivative there, and how the results of order 5 and 4 differ."""
    from scipy.integrate import RK45  # here, since `--help` need not wait for it

    h, stages = s - t, [k1]
    for a, c in zip(RK45.A[1:], RK45.C[1:], strict=True):
        stages.append((yield from flow.derivative(x0 + increment(h, a, stages), t + c * h)))
    x1 = x0 + increment(h, RK45.B, stages)
    stages.append((yield from flow.derivative(x1, s)))
    return x1, stages[-1], increment(h, RK45.E, stages)


def increment(h: Times, weights: Sequence[float], stages: Sequence[Tensor]) -> Any:
    """h Σᵢ wᵢ kᵢ, without the stages of weight 0."""
    used = [i for i, weight in enumerate(weights) if weight]
    total = combine([weights[i] for i in used], [stages[i] for i in used])
    return column(h, total) * total


def column(values: Times, x: Tensor) -> Tensor:
    """(m,) float64 → a tensor like x that broadcasts over the images (m, …)."""
    return x.new_tensor(values).reshape(-1, *[1] * (x.ndim - 1))
