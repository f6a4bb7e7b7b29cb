"""Transfer parts: what a method asks the network for, and how x moves along it from one time to another.

A part is made of a schedule (anything that has its ᾱ) and has two methods. `gradient(x, t, origin)` is a generator that
yields a `Query` and returns what the steps combine; origin is the (x, t) at which the step began.
`transfer(x, gradient, t, s)` is x at time s.
"""

import math

from pndm.runner.solver.events import Query


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

    options = frozenset()
    sign = -1  # the mean of ε over a step is taken by dρ ∝ e^(−λ) dλ

    def __init__(self, schedule):
        self.schedule = schedule
        self.alpha = schedule.alpha_cumprod  # t → ᾱ(t)

    def between(self, t, s, share):
        """The time at a share of the step from t to s, in λ."""
        ends = self.schedule.half_log_snr(t), self.schedule.half_log_snr(s)
        return float(self.schedule.time(ends[0] + share * (ends[1] - ends[0])))

    def gradient(self, x, t, origin):
        return (yield Query(x, t))

    def transfer(self, x, gradient, t, s):
        return phi(x, gradient, self.alpha(t), self.alpha(s))


class Data(Pseudo):
    """Data prediction (DPM-Solver++, Lu et al. 2022b): the gradient is the predicted image x̂₀, x moves with φ along it.

    clip: to [−1, 1]. threshold: dynamic thresholding (Saharia et al. 2022, appendix C.2): the image is clipped to this
    quantile of its absolute values, where that is above 1, and divided by it.
    """

    options = frozenset({"clip", "threshold"})
    sign = 1  # the mean of x̂₀ over a step is taken by d(1/ρ) ∝ e^λ dλ

    def __init__(self, schedule, clip=False, threshold=None):
        super().__init__(schedule)
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}, it must be between 0 and 1")
        if clip and threshold is not None:
            raise ValueError("clip and threshold exclude each other: what is thresholded is in [−1, 1]")
        self.clip, self.threshold = clip, threshold

    def gradient(self, x, t, origin):
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

    def transfer(self, x, gradient, t, s):
        a, b = self.alpha(t), self.alpha(s)
        weight = (b - a) / (math.sqrt(1 - a) * (math.sqrt(b * (1 - a)) + math.sqrt(a * (1 - b))))
        return math.sqrt((1 - b) / (1 - a)) * x + weight * gradient


class Classical(Pseudo):
    """Classical methods: the gradient is dx/dt of the probability-flow ODE, and x moves on a straight line."""

    def gradient(self, x, t, origin):
        eps = yield Query(x, t)
        return flow(x, eps, self.alpha(t), self.schedule.log_alpha_cumprod(t, nu=1))

    def transfer(self, x, gradient, t, s):
        return x + (s - t) * gradient


class PublishedSchedule:
    """The released code's ᾱ: read one index late and truncated at half steps, so that t = −1 is ᾱ_0."""

    def __init__(self, schedule):
        self.alphas_cumprod = schedule.alphas_cumprod

    def alpha_cumprod(self, t):
        return self.alphas_cumprod[int(t) + 1]


class PublishedClassical(Classical):
    """FON of the released code: every stage's slope is one φ-step of length 1 from the *step's* x and t."""

    def gradient(self, x, t, origin):
        eps = yield Query(x, t)
        x, t = origin
        return x - phi(x, eps, self.alpha(t), self.alpha(t - 1))


def flow(x, eps, alpha, slope):
    """dx/dt = ᾱ′/(2ᾱ) · (x − ε/√(1−ᾱ)), with slope = ᾱ′/ᾱ."""
    return slope / 2 * (x - eps / (1 - alpha) ** 0.5)
