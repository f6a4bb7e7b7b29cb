"""Networks in closed form: the true ε of Gaussian mixtures, whose flow is known, to measure methods against."""

import numpy as np
import torch


class GaussianMixture:
    """ε(x, t) = −√(1−ᾱ) ∇ log p_t(x) for data from Σ wᵢ N(μᵢ, diag vᵢ); called like any network.

    schedule: gives ᾱ(t). means, variances: (k, *shape), float64 tensors; weights (k,), equal by default.
    Noised to ᾱ, component i is N(√ᾱ μᵢ, ᾱ vᵢ + 1 − ᾱ).
    """

    def __init__(self, schedule, means, variances, weights=None):
        self.schedule = schedule
        self.means, self.variances = means, variances
        self.log_weights = torch.log(torch.full((len(means),), 1 / len(means)) if weights is None else weights)

    def __call__(self, x, t):
        """x (n, *shape), t (n,) real in [−1, N−1] → ε like x."""
        return self.eps(x, x.new_tensor(self.schedule.alpha_cumprod(t.double().cpu().numpy())))

    def eps(self, x, alpha):
        """ε at noise levels ᾱ: x (n, *shape), alpha (n,)."""
        alpha = alpha.reshape(-1, *[1] * x.ndim)
        means, variances = self.means.to(x), self.variances.to(x)
        spread = alpha * variances + 1 - alpha  # (n, k, *shape)
        away = x[:, None] - alpha.sqrt() * means
        log_density = -0.5 * (away**2 / spread + spread.log()).flatten(2).sum(2) + self.log_weights.to(x)
        share = log_density.softmax(1).reshape(*log_density.shape, *[1] * (x.ndim - 1))
        return (1 - alpha[:, 0]).sqrt() * (share * away / spread).sum(1)

    def flow(self, x, t, s, tolerance=1e-12):
        """Carry x (n, *shape), float64, along the probability flow from time t to s < t.

        In closed form for one Gaussian. Else integrated with SciPy's DOP853 as d(x/√ᾱ)/dσ = ε, σ = √(1/ᾱ − 1).
        """
        from scipy.integrate import solve_ivp

        a, b = float(self.schedule.alpha_cumprod(t)), float(self.schedule.alpha_cumprod(s))
        if len(self.means) == 1:
            mean, variance = self.means[0], self.variances[0]
            ratio = (b * variance + 1 - b) / (a * variance + 1 - a)
            return b**0.5 * mean + (x - a**0.5 * mean) * ratio.sqrt()

        def slope(sigma, y):
            alpha = 1 / (1 + sigma**2)
            scaled = torch.from_numpy(y.reshape(x.shape)) * alpha**0.5
            return self.eps(scaled, torch.full((len(x),), alpha, dtype=torch.float64)).numpy().ravel()

        span = [(1 / level - 1) ** 0.5 for level in (a, b)]
        start = (x / a**0.5).numpy().ravel()
        end = solve_ivp(slope, span, start, method="DOP853", rtol=tolerance, atol=tolerance).y[:, -1]
        return torch.from_numpy(np.ascontiguousarray(end).reshape(x.shape)) * b**0.5
