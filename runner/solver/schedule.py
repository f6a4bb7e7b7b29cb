"""Noise schedules: ᾱ(t) at the training steps and, smoothly, between them; ε from what a network predicts."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

TYPES = ("linear", "quad", "cosine")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Schedule:
    """A noise schedule, x_t = √ᾱ_t · x_0 + √(1−ᾱ_t) · ε.

    type: "linear" (β linear in t; Ho et al. 2020), "quad" (√β linear in t; DDIM's code) or
        "cosine" (Nichol & Dhariwal 2021, Eq. 17, β capped at 0.999; takes no β range).
    beta_start, beta_end: β at the first and the last training step, 0 < β < 1.
    diffusion_step: number of training steps N; t counts them 0 … N−1 and t = −1 is clean data.
    betas: β of every training step, 0 < β < 1, shape (N,), in place of all these.

    `betas` and `alphas_cumprod` are float64 arrays of shape (N,). Raises ValueError on a type or
    range that is none of the above.
    """

    def __init__(
        self,
        type: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        diffusion_step: int = 1000,
        betas: ArrayLike | None = None,
    ) -> None:
        if betas is not None:
            betas = np.array(betas, dtype=np.float64)
            if betas.ndim != 1 or not len(betas) or not np.all((betas > 0) & (betas < 1)):
                shown = np.array2string(betas, threshold=4)
                raise ValueError(f"betas must be one row of numbers 0 < β < 1, not {shown}")
            type, diffusion_step = "given", len(betas)
        elif type not in TYPES:
            raise ValueError(f"schedule type {type!r} is not one of {', '.join(TYPES)}")
        if not isinstance(diffusion_step, numbers.Integral) or diffusion_step < 1:
            raise ValueError(f"diffusion_step is {diffusion_step!r}, it must be a whole number, at least 1")
        if type not in ("cosine", "given") and not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"betas must satisfy 0 < beta_start <= beta_end < 1, not {beta_start}, {beta_end}")
        if type == "linear":
            betas = np.linspace(beta_start, beta_end, diffusion_step)
        elif type == "quad":
            betas = np.linspace(beta_start**0.5, beta_end**0.5, diffusion_step) ** 2
        elif type == "cosine":
            edges = np.cos((np.arange(diffusion_step + 1) / diffusion_step + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - edges[1:] / edges[:-1], 0.999)
        self.type = type
        self.diffusion_step = diffusion_step
        self.betas = betas
        self.alphas_cumprod = np.cumprod(1 - betas)
        if not self.alphas_cumprod[-1] > 0:
            raise ValueError(f"{diffusion_step} steps up to β = {betas[-1]:g} leave ᾱ = 0, nothing of the data")
        self._log_alpha = None

    @property
    def log_alpha_cumprod(self) -> Callable[..., Any]:
        """log ᾱ as a function of real t in [−1, N−1], exact at the integers; call with `nu=1` for its slope.

        A cubic spline, twice differentiable as Runge–Kutta methods want their right side; for schedules so
        coarse that the spline would rise somewhere, a monotone cubic (PCHIP), differentiable once.
        """
        if self._log_alpha is None:
            from scipy.interpolate import CubicSpline, PchipInterpolator  # 0.3 s, which `--help` need not wait for

            times, values = np.arange(-1.0, self.diffusion_step), np.concatenate([[0.0], np.log(self.alphas_cumprod)])
            spline = CubicSpline(times, values)
            rises = spline(np.linspace(-1, self.diffusion_step - 1, 8 * self.diffusion_step + 1), nu=1).max() > 0
            self._log_alpha = PchipInterpolator(times, values) if rises else spline
        return self._log_alpha

    def alpha_cumprod(self, t: Any) -> Any:
        """ᾱ at real t in [−1, N−1] (a number or an array of them), float64; ᾱ(−1) = 1."""
        whole = np.asarray(t).astype(int)
        if np.all(whole == t):
            return np.where(whole < 0, 1.0, self.alphas_cumprod[whole])[()]
        return np.exp(self.log_alpha_cumprod(t))[()]

    def rho(self, t):
        """ρ = √(1−ᾱ)/√ᾱ, the noise level of x/√ᾱ, at real t (a number or an array of them); 0 at clean data."""
        alpha = self.alpha_cumprod(t)
        return ((1 - alpha) / alpha) ** 0.5

    def half_log_snr(self, t):
        """λ = log(√ᾱ/√(1−ᾱ)) = −log ρ at real t (a number or an array of them); infinite at clean data."""
        with np.errstate(divide="ignore"):
            return -np.log(self.rho(t))

    def time(self, half_log_snr):
        """The t in [−1, N−1] at which λ has a value (a number or an array of them), by Newton's method on log ᾱ."""
        wanted = -np.log1p(np.exp(-2 * np.asarray(half_log_snr)))
        log_alpha = self.log_alpha_cumprod
        t = np.interp(-wanted, -log_alpha.c[-1], log_alpha.x[:-1])  # between the training steps it is nearly straight
        for _ in range(8):
            t = np.clip(t - (log_alpha(t) - wanted) / log_alpha(t, nu=1), -1, self.diffusion_step - 1)
        return t[()]


def eps_from(output, x, alpha, prediction):
    """ε of x = √ᾱ · x_0 + √(1−ᾱ) · ε from a network's output at x and noise level ᾱ < 1 (a number, or like x).

    prediction: a name in `PREDICTIONS`: the output is ε itself, v = √ᾱ · ε − √(1−ᾱ) · x_0 (Salimans & Ho 2022),
    or x_0.
    """
    if prediction == "v_prediction":
        return alpha**0.5 * output + (1 - alpha) ** 0.5 * x
    if prediction == "sample":
        return (x - alpha**0.5 * output) / (1 - alpha) ** 0.5
    return output
