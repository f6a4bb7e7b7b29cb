"""EDM's noise levels σ as a schedule, so that every method and grid here runs on networks that are told σ."""

import numbers
from functools import cached_property
from typing import Any

import numpy as np

from pndm.runner.solver.schedule import MOST_STEPS, Schedule, betas_of

RHO = 7  # Karras et al. 2022 (arXiv:2206.00364), section 3


class SigmaSchedule(Schedule):
    """σ from sigma_min to sigma_max: x_t = √ᾱ_t · (x_0 + σ_t · ε) with ᾱ = 1/(1+σ²). EDM's x is x_t/√ᾱ_t.

    σ^(1/7) is linear in t from sigma_min at t = 0 to sigma_max at t = N−1: Eq. (5) of Karras et al. 2022, ρ = 7. So
    equal steps of t are EDM's steps. From t = 0 to clean data at t = −1 σ is linear in t. Everything is float64 and in
    closed form, at real t.

    sigma_min, sigma_max: 1e-6 ≤ sigma_min < sigma_max ≤ 1e6. diffusion_step: N, 2 … 10⁶.
    Raises ValueError for anything else.

        >>> from pndm import SigmaSchedule
        >>> round(float(SigmaSchedule().sigma(999)), 6)
        80.0
    """

    sigma_min: float
    sigma_max: float
    start: float  # σ^(1/7) at t = 0
    slope: float  # its rise a unit of t

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, diffusion_step: int = 1000) -> None:
        for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
            if not isinstance(value, numbers.Real) or not 1e-6 <= value <= 1e6:
                raise ValueError(f"{name} is {value!r}, it must be a number from 1e-06 to 1e+06")
        if not sigma_min < sigma_max:
            raise ValueError(f"sigma_min {sigma_min:g} must be below sigma_max {sigma_max:g}")
        if not isinstance(diffusion_step, numbers.Integral) or not 2 <= diffusion_step <= MOST_STEPS:
            raise ValueError(f"diffusion_step is {diffusion_step!r}, it must be a whole number from 2 to {MOST_STEPS}")
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.start = self.sigma_min ** (1 / RHO)
        self.slope = (self.sigma_max ** (1 / RHO) - self.start) / (diffusion_step - 1)
        alphas = 1 / (1 + self.sigma(np.arange(diffusion_step)) ** 2)
        betas = betas_of(alphas)
        if not (betas > 0).all():
            raise ValueError(
                f"sigma_min {sigma_min:g} is too small for {diffusion_step} steps: float64 cannot tell them apart"
            )
        super().__init__(betas=betas)
        self.alphas_cumprod = alphas

    def sigma(self, t: Any) -> Any:
        """σ at real t in [0, N−1]: a number, an array, or a tensor."""
        return (self.start + self.slope * t) ** RHO

    def rho(self, t: Any) -> Any:
        """σ at real t in [−1, N−1] (a number or an array of them); 0 at clean data."""
        times: Any = np.asarray(t, dtype=np.float64)
        return np.where(times < 0, self.sigma_min * (times + 1), self.sigma(np.maximum(times, 0)))[()]

    def alpha_cumprod(self, t: Any) -> Any:
        return 1 / (1 + self.rho(t) ** 2)

    @cached_property
    def log_alpha_cumprod(self) -> Any:
        """log ᾱ as a function of real t in [−1, N−1]; call with `nu=1` for its slope."""

        def log_alpha(t: Any, nu: int = 0) -> Any:
            sigma = self.rho(t)
            if nu == 0:
                return -np.log1p(sigma**2)
            rise = np.where(np.asarray(t) < 0, self.sigma_min, RHO * self.slope * sigma ** (1 - 1 / RHO))
            return (-2 * sigma * rise / (1 + sigma**2))[()]

        return log_alpha

    def time(self, half_log_snr: Any) -> Any:
        sigma = np.exp(-np.asarray(half_log_snr, dtype=np.float64))
        t = np.where(sigma < self.sigma_min, sigma / self.sigma_min - 1, (sigma ** (1 / RHO) - self.start) / self.slope)
        return np.clip(t, -1, self.diffusion_step - 1)[()]
