"""Gradient parts of the multistep methods: the weights of past predictions, newest first, on any grid.

With ρ = √(1−ᾱ)/√ᾱ the probability flow is d(x/√ᾱ) = ε dρ and, for the predicted image x̂₀, d(x/√(1−ᾱ)) = x̂₀ d(1/ρ).
So a step by the transfer part is exact if ε is replaced by its mean over the step, taken in ρ (x̂₀: in 1/ρ).
A multistep method takes the mean of the polynomial through the last predictions. Three things make a rule:

- the variable of the polynomial: t, ρ, or λ = −log ρ;
- what is predicted, ε or x̂₀: the transfer part says it;
- how exactly the mean is taken.

Let τ = 0 … 1 be the step. The mean of τʲ is the moment μⱼ. The weights w of predictions at τ = u₁, u₂, … solve
Σᵢ wᵢ uᵢʲ = μⱼ, j = 0, 1, ….

A rule is called as rule(transfer part, times of the predictions, t, s) for the step from t to s, and returns one weight
for each time.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from pndm.runner.solver.transfer import Pseudo

Rule: TypeAlias = Callable[[Pseudo, Sequence[float], float, float], Sequence[float]]
Mean: TypeAlias = Callable[[int, float], Sequence[float]]  # (count, h) → the moments μⱼ, j < count

# Gauss–Legendre on [0, 1]. Means are taken over v with τ = 1 − v², for which ρ is smooth even where it is √(t+1).
_NODES, _SHARES = np.polynomial.legendre.leggauss(32)
_V, _W = (1 + _NODES) / 2, _SHARES / 2
_TAU = 1 - _V**2


def weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """w with Σᵢ wᵢ uᵢʲ = μⱼ; nodes u and moments μ on the scale of the step."""
    found: list[float] = np.linalg.solve(np.vander(nodes, increasing=True).T, moments).tolist()
    return found


def moments(count: int, share: Callable[[Any], Any]) -> list[float]:
    """μⱼ = ∫ τʲ dm(τ), j < count, by parts: μⱼ = 1 − j ∫ τʲ⁻¹ m(τ) dτ.

    share: m, the share of the step that is done at an array of τ; m(0) = 0, m(1) = 1.
    """
    done = share(_TAU)
    return [1.0, *(1 - j * np.sum(_W * 2 * _V * _TAU ** (j - 1) * done) for j in range(1, count))]


def places(variable: Callable[[float], Any], times: Sequence[float], t: float, s: float) -> list[float]:
    """The nodes u of the times, in a variable, on the scale of the step from t to s."""
    first, last = variable(t), variable(s)
    return [(variable(time) - first) / (last - first) for time in times]


def combine(weights: Sequence[float], gradients: Sequence[Any]) -> Any:
    """Σᵢ wᵢ gᵢ, of equally many weights and gradients."""
    total = weights[0] * gradients[0]
    for weight, gradient in zip(weights[1:], gradients[1:], strict=True):
        total = total + weight * gradient
    return total


def equal_steps(part: Pseudo, times: Sequence[float], t: float, s: float) -> Sequence[float]:
    """Adams–Bashforth for equal steps, whatever the steps are: PNDM's Eq. (12), (13), iPNDM."""
    return ADAMS_BASHFORTH[len(times)]


# Newest first; the k-step combination is exact for predictions that are polynomials of degree k−1 in the step number.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def in_t(part: Pseudo, times: Sequence[float], t: float, s: float) -> Sequence[float]:
    """Polynomial in t, mean in ρ: the tAB of DEIS (Zhang & Chen 2023, Eq. (15))."""
    rho = part.schedule.rho
    mean = moments(len(times), lambda tau: (rho(t + tau * (s - t)) - rho(t)) / (rho(s) - rho(t)))
    return weights(places(float, times, t, s), mean)


def in_rho(part: Pseudo, times: Sequence[float], t: float, s: float) -> Sequence[float]:
    """Polynomial in ρ, mean in ρ: Adams–Bashforth of variable step, the ρAB of DEIS (degree 1: iPNDM_v)."""
    return weights(places(part.schedule.rho, times, t, s), [1 / (j + 1) for j in range(len(times))])


def in_lambda(mean: Mean) -> Rule:
    """Polynomial in λ, its mean by a rule for the moments.

    mean(count, h): the moments. h is the step in λ, with the part's sign: negative where ε is predicted.
    A step into clean data is infinitely long in λ. Only the newest prediction says anything about its end.
    """

    def rule(part: Pseudo, times: Sequence[float], t: float, s: float) -> Sequence[float]:
        if len(times) == 1:
            return [1.0]
        half_log_snr = part.schedule.half_log_snr
        h = part.sign * (half_log_snr(s) - half_log_snr(t))
        return weights(places(half_log_snr, times, t, s), mean(len(times), h))

    return rule


def exact(count: int, h: float) -> list[float]:
    """The exact mean, by e^(hτ) dτ: log ρ-AB of DEIS, the stages of DPM-Solver, UniPC beyond order 2."""
    return moments(count, lambda tau: np.expm1(h * tau) / math.expm1(h))


def dpm_solver(count: int, h: float) -> list[float]:
    """The multistep of DPM-Solver and DPM-Solver++: at order 2 the middle of the step (Lu et al. 2022b, algorithm 2).

    Order 3 is in their code alone: the exact mean, with half of the second moment.
    """
    if count == 2:
        return [1.0, 1 / 2]
    zeroth, first, second = exact(count, h)
    return [zeroth, first, second / 2]


def unipc(scale: Callable[[float], float]) -> Mean:
    """UniPC with B(h) = scale(h): at order 2 by B (Zhao et al. 2023, section 3.3), beyond it the exact mean."""

    def mean(count: int, h: float) -> list[float]:
        if count == 2:
            return [1.0, scale(-h) / math.expm1(-h) / 2]
        return exact(count, h)

    return mean
