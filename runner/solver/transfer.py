"""Transfer parts: what a method combines (its gradients), and how x moves along the combination.

A part is made of a schedule. `gradient(x, t)` is a generator that asks for ε at x and t and returns the gradient.
`transfer(x, gradient, t, s)` is x at time s.
"""

import math
from typing import Any, ClassVar

from pndm.runner.solver.events import Gradient, Query, Tensor
from pndm.runner.solver.schedule import Schedule


def phi(x: Any, eps: Any, alpha_t: float, alpha_s: float) -> Any:
    """φ, the transfer of x from noise level ᾱ_t to ᾱ_s along ε; the paper's Eq. (9). Exact whenever ε is.

    φ = √(ᾱ_s/ᾱ_t) x + (ᾱ_t − ᾱ_s) / (√ᾱ_t (√((1−ᾱ_s)ᾱ_t) + √((1−ᾱ_t)ᾱ_s))) ε

    The weight of ε equals √(1−ᾱ_s) − √(ᾱ_s(1−ᾱ_t)/ᾱ_t), which loses its digits where the levels are close.
    x, eps: tensors of one shape, or numbers.
    """
    ratio = math.sqrt(alpha_s / alpha_t)
    weight = (alpha_t - alpha_s) / (
        math.sqrt(alpha_t) * (math.sqrt((1 - alpha_s) * alpha_t) + math.sqrt((1 - alpha_t) * alpha_s))
    )
    return ratio * x + weight * eps


def flow(x: Any, eps: Any, rate: Any, noise: Any) -> Any:
    """dx/dt = ᾱ′/(2ᾱ) · (x − ε/√(1−ᾱ)), the probability-flow ODE; rate = ᾱ′/(2ᾱ), noise = √(1−ᾱ).

    Numbers, or tensors that broadcast with x.
    """
    return rate * (x - eps / noise)


class Pseudo:
    """Pseudo methods: the gradient is ε, and x moves with φ, along the manifold of noisy data.

    schedule: a `Schedule`. `alpha(t)` is its ᾱ.
    x and gradients are tensors (n, …) of one shape; times are in training steps. Source: the paper's Eq. (9).

        >>> import torch
        >>> from pndm import Pseudo, Schedule
        >>> part, x = Pseudo(Schedule()), torch.ones(1, 1)
        >>> tuple(part.transfer(x, torch.zeros(1, 1), t=500, s=400).shape)  # along ε = 0
        (1, 1)
    """

    options: ClassVar[frozenset[str]] = frozenset()
    sign: ClassVar[int] = -1  # the mean of ε over a step is taken by dρ ∝ e^(−λ) dλ

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def alpha(self, t: float) -> Any:
        """ᾱ at t, a float."""
        return self.schedule.alpha_cumprod(t)

    def between(self, t: float, s: float, share: float) -> float:
        """The time at a share, 0 … 1, of the step from t to s, in λ."""
        start, end = self.schedule.half_log_snr(t), self.schedule.half_log_snr(s)
        return float(self.schedule.time(start + share * (end - start)))

    def gradient(self, x: Tensor, t: float) -> Gradient:
        """A generator that asks about x (n, …) at time t, and returns what is combined, like x."""
        return (yield Query(x, t))

    def transfer(self, x: Tensor, gradient: Tensor, t: float, s: float) -> Any:
        """x (n, …) at time t, moved along the gradient to time s."""
        return phi(x, gradient, self.alpha(t), self.alpha(s))


class Data(Pseudo):
    """Data prediction (DPM-Solver++, Lu et al. 2022b): the gradient is the predicted image x̂₀ = (x − √(1−ᾱ) ε)/√ᾱ.

    x moves with φ, written in x̂₀:  x_s = √((1−ᾱ_s)/(1−ᾱ_t)) x + (√ᾱ_s − √(ᾱ_t(1−ᾱ_s)/(1−ᾱ_t))) x̂₀.

    clip: clip x̂₀ to [−1, 1]. threshold: dynamic thresholding (Saharia et al. 2022, appendix C.2): per image, c is this
    quantile of |x̂₀|, at least 1; x̂₀ is clipped to [−c, c] and divided by c.

        >>> from pndm import METHODS, Data
        >>> METHODS["DPM-Solver++2M"].part is Data
        True
    """

    options: ClassVar[frozenset[str]] = frozenset({"clip", "threshold"})
    sign: ClassVar[int] = 1  # the mean of x̂₀ over a step is taken by d(1/ρ) ∝ e^λ dλ

    def __init__(self, schedule: Schedule, clip: bool = False, threshold: float | None = None) -> None:
        super().__init__(schedule)
        self.clip, self.threshold = clip, threshold

    def gradient(self, x: Tensor, t: float) -> Gradient:
        eps = yield Query(x, t)
        alpha = self.alpha(t)
        data = (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
        if self.clip:
            return data.clamp(-1, 1)
        if self.threshold is not None:
            bound = data.abs().flatten(1).quantile(self.threshold, dim=1).clamp(min=1)
            bound = bound.reshape(-1, *[1] * (x.ndim - 1))
            return data.clamp(-bound, bound) / bound
        return data

    def transfer(self, x: Tensor, gradient: Tensor, t: float, s: float) -> Any:
        a, b = self.alpha(t), self.alpha(s)
        weight = (b - a) / (math.sqrt(1 - a) * (math.sqrt(b * (1 - a)) + math.sqrt(a * (1 - b))))
        return math.sqrt((1 - b) / (1 - a)) * x + weight * gradient


class Classical(Pseudo):
    """Classical methods: the gradient is dx/dt of the probability-flow ODE, and x moves on a straight line.

    Example:

        >>> from pndm import METHODS, Classical
        >>> METHODS["FON"].part is Classical
        True
    """

    def gradient(self, x: Tensor, t: float) -> Gradient:
        eps = yield Query(x, t)
        return flow(x, eps, self.schedule.log_alpha_cumprod(t, nu=1) / 2, (1 - self.alpha(t)) ** 0.5)

    def transfer(self, x: Tensor, gradient: Tensor, t: float, s: float) -> Any:
        return x + (s - t) * gradient
