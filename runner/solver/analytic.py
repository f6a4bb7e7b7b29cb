"""Networks in closed form: the true ε of Gaussian mixtures. Their flow is known, so methods are measured against it."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from pndm.runner.solver.schedule import Schedule


class GaussianMixture:
    """ε(x, t) = −√(1−ᾱ) ∇ log p_t(x) for data from Σ wᵢ N(μᵢ, diag vᵢ). It is called like any network.

    Noised to ᾱ, component i is N(√ᾱ μᵢ, ᾱ vᵢ + 1 − ᾱ).

    schedule: a `Schedule`; gives ᾱ(t). means, variances: (k, *shape), float64 tensors. weights: (k,), equal by default.
    """

    def __init__(self, schedule: "Schedule", means: Tensor, variances: Tensor, weights: Tensor | None = None) -> None:
        self.schedule = schedule
        self.means, self.variances = means, variances
        self.log_weights = torch.log(torch.full((len(means),), 1 / len(means)) if weights is None else weights)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """ε like x (n, *shape), at t (n,) or (1,), real in [−1, N−1]."""
        return self.eps(x, x.new_tensor(self.schedule.alpha_cumprod(t.double().cpu().numpy())))

    def eps(self, x: Tensor, alpha: Tensor) -> Tensor:
        """ε like x (n, *shape), at noise levels ᾱ: alpha (n,) or (1,)."""
        alpha = alpha.reshape(-1, *[1] * x.ndim)
        means, variances = self.means.to(x), self.variances.to(x)
        spread = alpha * variances + 1 - alpha  # (n, k, *shape)
        away = x[:, None] - alpha.sqrt() * means
        log_density = -0.5 * (away**2 / spread + spread.log()).flatten(2).sum(2) + self.log_weights.to(x)
        share = log_density.softmax(1).reshape(*log_density.shape, *[1] * (x.ndim - 1))
        return (1 - alpha[:, 0]).sqrt() * (share * away / spread).sum(1)

    def flow(self, x: Tensor, t: float, s: float, tolerance: float = 1e-12) -> Tensor:
        """Carry x (n, *shape), float64, along the probability flow from time t to s < t.

        One Gaussian: in closed form. More: d(x/√ᾱ)/dσ = ε with σ = √(1/ᾱ − 1), integrated by SciPy's DOP853.
        tolerance: its rtol and atol.
        """
        from scipy.integrate import solve_ivp

        a, b = float(self.schedule.alpha_cumprod(t)), float(self.schedule.alpha_cumprod(s))
        if len(self.means) == 1:
            mean, variance = self.means[0], self.variances[0]
            ratio = (b * variance + 1 - b) / (a * variance + 1 - a)
            carried: Tensor = b**0.5 * mean + (x - a**0.5 * mean) * ratio.sqrt()
            return carried

        def slope(sigma: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
            alpha = 1 / (1 + sigma**2)
            scaled = torch.from_numpy(y.reshape(x.shape)) * alpha**0.5
            eps: NDArray[np.float64] = self.eps(scaled, torch.full((len(x),), alpha, dtype=torch.float64)).numpy()
            return eps.ravel()

        span = [(1 / level - 1) ** 0.5 for level in (a, b)]
        start = (x / a**0.5).numpy().ravel()
        end = solve_ivp(slope, span, start, method="DOP853", rtol=tolerance, atol=tolerance).y[:, -1]
        ended: Tensor = torch.from_numpy(np.ascontiguousarray(end).reshape(x.shape)) * b**0.5
        return ended
