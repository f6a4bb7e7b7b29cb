"""Gradient parts of the later multistep methods: the weights of past predictions, newest first, on any grid.

Since d(x/√ᾱ) = ε dρ with ρ = √(1−ᾱ)/√ᾱ, and d(x/√(1−ᾱ)) = x̂₀ d(1/ρ), a step with the transfer part is exact when ε
(or the predicted image x̂₀) is replaced by its mean over the step, taken in ρ (or 1/ρ). A multistep method takes the
mean of the polynomial through the last predictions: a polynomial in t, in ρ, or in λ = −log ρ. So three things make a
rule: the variable, the predictions of the method's transfer part, and how exactly the mean is taken. On the scale
where a step is τ = 0 … 1 the mean of τʲ is the moment μⱼ, and the weights w of predictions at u₁, u₂, … solve
Σᵢ wᵢ uᵢʲ = μⱼ, j = 0, 1, ….

A rule is called with (transfer part, times of the predictions, t, s) for the step from t to s and returns as many
weights as there are times.
"""

import math

import numpy as np

# Gauss–Legendre on [0, 1]. Means are taken over v with τ = 1 − v², for which ρ is smooth even where it is √(t+1).
_V, _W = (1 + np.polynomial.legendre.leggauss(32)[0]) / 2, np.polynomial.legendre.leggauss(32)[1] / 2
_TAU = 1 - _V**2


def weights(nodes, moments):
    """w with Σ wᵢ uᵢʲ = μⱼ; nodes u and moments μ on the scale of the step."""
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments).tolist()


def moments(count, share):
    """μⱼ = ∫ τʲ dm(τ), j < count, for the share m(τ) of a step that is done at τ: m(0) = 0, m(1) = 1. By parts."""
    done = share(_TAU)
    return [1.0, *(1 - j * np.sum(_W * 2 * _V * _TAU ** (j - 1) * done) for j in range(1, count))]


def combine(weights, gradients):
    """The sum of weight × gradient; as many of one as of the other."""
    total = weights[0] * gradients[0]
    for weight, gradient in zip(weights[1:], gradients[1:], strict=True):
        total = total + weight * gradient
    return total


def equal_steps(part, times, t, s):
    """Adams–Bashforth for equal steps, whatever the steps are: PNDM's Eq. (12), (13), iPNDM."""
    return ADAMS_BASHFORTH[len(times)]


# Newest first; the k-step combination is exact for predictions that are polynomials of degree k−1 in the step number.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def in_t(part, times, t, s):
    """Polynomial in t, mean in ρ: tAB of DEIS (Zhang & Chen 2023, Eq. (15))."""
    first, last = part.schedule.rho(t), part.schedule.rho(s)
    mean = moments(len(times), lambda tau: (part.schedule.rho(t + tau * (s - t)) - first) / (last - first))
    return weights([(time - t) / (s - t) for time in times], mean)


def in_rho(part, times, t, s):
    """Polynomial and mean in ρ: ρAB of DEIS, and what later code calls iPNDM_v (variable-step Adams–Bashforth)."""
    first, length = part.schedule.rho(t), part.schedule.rho(s) - part.schedule.rho(t)
    return weights(
        [(part.schedule.rho(time) - first) / length for time in times], [1 / (j + 1) for j in range(len(times))]
    )


def in_lambda(mean):
    """Polynomial in λ, mean by a rule mean(count, h) of moments; h, the step in λ, is negative for predictions of ε.

    A step into clean data is infinitely long, and only the newest prediction says anything about its end.
    """

    def rule(part, times, t, s):
        if len(times) == 1:
            return [1.0]
        first = part.schedule.half_log_snr(t)
        length = part.schedule.half_log_snr(s) - first
        nodes = [(part.schedule.half_log_snr(time) - first) / length for time in times]
        return weights(nodes, mean(len(times), part.sign * length))

    return rule


def exact(count, h):
    """The mean as it is, by e^(hτ) dτ: logρ-AB of DEIS, the stages of DPM-Solver, UniPC beyond order 2."""
    return moments(count, lambda tau: np.expm1(h * tau) / math.expm1(h))


def dpm_solver(count, h):
    """DPM-Solver's and DPM-Solver++'s multistep: at 2 the middle of the step (Lu et al. 2022b, algorithm 2).

    At 3, which the papers leave to their code, exact but for half of the second moment's part that is due.
    """
    return [1.0, 1 / 2] if count == 2 else [*(full := exact(count, h))[:2], full[2] / 2]


def unipc(scale):
    """UniPC with B(h) = scale(h): at 2 the middle of the step by B (Zhao et al. 2023, section 3.3), else exact."""
    return lambda count, h: [1.0, scale(-h) / math.expm1(-h) / 2] if count == 2 else exact(count, h)
