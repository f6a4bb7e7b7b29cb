"""Networks in closed form: the true ε of Gaussian mixtures. Their flow is known, so methods are measured against it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pndm.runner.solver.schedule import Schedule


class GaussianMixture:
    """ε(x, t) = −√(1−ᾱ) ∇ log p_t(x) for data from Σ N(μᵢ, diag vᵢ) / k. It is called like any network.

    Noised to ᾱ, component i is N(√ᾱ μᵢ, ᾱ vᵢ + 1 − ᾱ).

    schedule: gives ᾱ(t). means, variances: (k, *shape), float64 tensors. The k weights are equal.
    """

    def __init__(self, schedule: Schedule, means: Tensor, variances: Tensor) -> None:
        self.schedule, self.means, self.variances = schedule, means, variances

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """ε like x (n, *shape), at t (n,) or (1,), real in [−1, N−1]."""
        return self.eps(x, x.new_tensor(self.schedule.alpha_cumprod(t.double().cpu().numpy())))

    def eps(self, x: Tensor, alpha: Tensor) -> Tensor:
        """ε like x (n, *shape), at noise levels ᾱ: alpha (n,) or (1,)."""
        alpha = alpha.reshape(-1, *[1] * x.ndim)
        means, variances = self.means.to(x), self.variances.to(x)
        spread = alpha * variances + 1 - alpha  # (n, k, *shape)
        away = x[:, None] - alpha.sqrt() * means
        log_density = -0.5 * (away**2 / spread + spread.log()).flatten(2).sum(2)
        share = log_density.softmax(1).reshape(*log_density.shape, *[1] * (x.ndim - 1))
        return (1 - alpha[:, 0]).sqrt() * (share * away / spread).sum(1)

    def flow(self, x: Tensor, t: float, s: float) -> Any:
        """Carry x (n, *shape), float64, along the probability flow from time t to s < t.

        One Gaussian: in closed form. More: d(x/√ᾱ)/dσ = ε with σ = √(1/ᾱ − 1), integrated by SciPy's DOP853.
        """
        from scipy.integrate import solve_ivp

        a, b = float(self.schedule.alpha_cumprod(t)), float(self.schedule.alpha_cumprod(s))
        if len(self.means) == 1:
            mean, variance = self.means[0], self.variances[0]
            ratio = (b * variance + 1 - b) / (a * variance + 1 - a)
            return b**0.5 * mean + (x - a**0.5 * mean) * ratio.sqrt()

        def slope(sigma: float, y: Any) -> Any:
            alpha = 1 / (1 + sigma**2)
            scaled = torch.from_numpy(y.reshape(x.shape)) * alpha**0.5
            return self.eps(scaled, x.new_tensor([alpha])).numpy().ravel()

        span = [(1 / level - 1) ** 0.5 for level in (a, b)]
        start = (x / a**0.5).numpy().ravel()
        end = solve_ivp(slope, span, start, method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
        return torch.from_numpy(np.ascontiguousarray(end).reshape(x.shape)) * b**0.5
