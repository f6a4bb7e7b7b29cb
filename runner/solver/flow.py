"""Flow matching in the frame of the methods: x_σ = (1−σ) x_0 + σ ε, divided by its scale, is the x of a `Schedule`."""

from functools import cached_property
from typing import Any

import numpy as np

from pndm.runner.solver.schedule import Schedule

NOISE = 1 - 1e-8  # the largest σ: at σ = 1 nothing of the data is left, and ᾱ = 0 has no λ


class FlowSchedule(Schedule):
    """The noise levels of flow matching (Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003).

    With s = √((1−σ)² + σ²), the scale, x_σ/s = √ᾱ x_0 + √(1−ᾱ) ε for ᾱ = ((1−σ)/s)². All methods work on x_σ/s: φ is
    then a straight line in x_σ, the step of Euler.

    t = N·σ is a real number in 0 … N; t = 0 is clean data. diffusion_step: N. There are no betas.
    """

    clean = 0.0

    def __init__(self, diffusion_step: int = 1000) -> None:
        self.diffusion_step = diffusion_step

    @property
    def last(self) -> int:
        return self.diffusion_step

    def sigma(self, t: Any) -> Any:
        """σ = t/N, at most 1 − 1e-8."""
        return np.minimum(np.asarray(t) / self.diffusion_step, NOISE)[()]

    def scale(self, t: Any) -> Any:
        """s = √((1−σ)² + σ²), what x of the methods is multiplied by to be x_σ."""
        return np.hypot(1 - self.sigma(t), self.sigma(t))

    def alpha_cumprod(self, t: Any) -> Any:
        return ((1 - self.sigma(t)) / self.scale(t)) ** 2

    def rho(self, t: Any) -> Any:
        return self.sigma(t) / (1 - self.sigma(t))

    def time(self, half_log_snr: Any) -> Any:
        return self.diffusion_step / (1 + np.exp(half_log_snr))

    @cached_property
    def log_alpha_cumprod(self) -> Any:
        raise ValueError("no method that follows dx/dt can run on flow matching: at σ = 1 the slope is infinite")
