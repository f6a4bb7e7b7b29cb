"""Noise schedules: ᾱ(t) at the training steps and, smoothly, between them. ε from what a network predicts."""

import math
import numbers
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

TYPES = ("linear", "quad", "cosine")
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
MOST_STEPS = 10**6  # training steps


class Schedule:
    """A noise schedule, x_t = √ᾱ_t · x_0 + √(1−ᾱ_t) · ε with ᾱ_t = Π (1−β).

    type: "linear" (β linear in t; Ho et al. 2020), "quad" (√β linear in t; DDIM's code) or
        "cosine" (Nichol & Dhariwal 2021, Eq. 17, β capped at 0.999; takes no β range).
    beta_start, beta_end: β at the first and the last training step, 0 < β < 1.
    diffusion_step: the number of training steps N, 1 … 10⁶. t counts them 0 … N−1; t = −1 is clean data.
    betas: β of every training step, 0 < β < 1, shape (N,), in place of all these.

    The attributes `betas` and `alphas_cumprod` (ᾱ) are float64 arrays of shape (N,). `clean` is the t of clean data.
    Raises ValueError for an unknown type, values out of range, and β so small or so large that float64 cannot tell ᾱ
    from the one before or from 0.

        >>> from pndm import Schedule
        >>> schedule = Schedule("linear", 1e-4, 0.02, 1000)
        >>> schedule.alphas_cumprod.shape, float(schedule.alpha_cumprod(-1))
        ((1000,), 1.0)
    """

    clean: float = -1.0

    def __init__(
        self,
        type: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        diffusion_step: int = 1000,
        betas: ArrayLike | None = None,
    ) -> None:
        if betas is None:
            betas = _betas(type, beta_start, beta_end, diffusion_step)
        self.betas = _checked(betas)
        self.diffusion_step = len(self.betas)
        self.alphas_cumprod = np.cumprod(1 - self.betas, dtype=np.float64)
        if not (left := self.alphas_cumprod[-1]) >= np.finfo(np.float64).tiny:
            raise ValueError(
                f"{self.diffusion_step} steps up to β = {self.betas[-1]:g} leave ᾱ = {left:g}, nothing of the data"
            )
        if not np.all(np.diff(self.alphas_cumprod, prepend=1.0) < 0):
            raise ValueError(f"β = {self.betas.min():g} is too small: ᾱ does not fall in every step, in float64")

    @property
    def last(self) -> int:
        """The greatest t that a network knows."""
        return self.diffusion_step - 1

    def scale(self, t: Any) -> Any:
        """What x of the methods is multiplied by to be x of the network."""
        return 1.0

    @cached_property
    def log_alpha_cumprod(self) -> Any:
        """log ᾱ as a function of real t in [−1, N−1], exact at the integers; call with `nu=1` for its slope.

        A cubic spline through the training steps: twice differentiable, as Runge–Kutta methods need it. Where the
        schedule is so coarse that the spline would rise, a monotone cubic (PCHIP), differentiable once.
        """
        from scipy.interpolate import CubicSpline, PchipInterpolator  # 0.3 s, which `--help` need not wait for

        times, values = np.arange(-1.0, self.diffusion_step), np.concatenate([[0.0], np.log(self.alphas_cumprod)])
        spline = CubicSpline(times, values)
        rises = spline(np.linspace(-1, self.diffusion_step - 1, 8 * self.diffusion_step + 1), nu=1).max() > 0
        return PchipInterpolator(times, values) if rises else spline

    def alike(self, other: "Schedule") -> bool:
        """Whether another schedule has the same ᾱ, but for rounding."""
        ours, theirs = self.alphas_cumprod, other.alphas_cumprod
        return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-6, atol=0)

    def alpha_cumprod(self, t: Any) -> Any:
        """ᾱ at real t in [−1, N−1] (a number or an array of them), float64; ᾱ(−1) = 1."""
        whole = np.asarray(t).astype(int)
        if np.all(whole == t):
            return np.where(whole < 0, 1.0, self.alphas_cumprod[whole])[()]
        return np.exp(self.log_alpha_cumprod(t))[()]

    def rho(self, t: Any) -> Any:
        """ρ = √(1−ᾱ)/√ᾱ, the noise level of x/√ᾱ, at real t (a number or an array of them); 0 at clean data."""
        alpha = self.alpha_cumprod(t)
        return ((1 - alpha) / alpha) ** 0.5

    def half_log_snr(self, t: Any) -> Any:
        """λ = log(√ᾱ/√(1−ᾱ)) = −log ρ at real t (a number or an array of them); infinite at clean data."""
        with np.errstate(divide="ignore"):
            return -np.log(self.rho(t))

    def time(self, half_log_snr: Any) -> Any:
        """The t in [−1, N−1] of a given λ (a number or an array of them): the inverse of `half_log_snr`, by Newton."""
        wanted = -np.log1p(np.exp(-2 * np.asarray(half_log_snr)))
        log_alpha = self.log_alpha_cumprod
        t: Any = np.interp(-wanted, -log_alpha.c[-1], log_alpha.x[:-1])  # nearly straight between the training steps
        for _ in range(8):
            t = np.clip(t - (log_alpha(t) - wanted) / log_alpha(t, nu=1), -1, self.diffusion_step - 1)
        return t[()]


def _checked(betas: ArrayLike) -> NDArray[np.float64]:
    """Given β as a float64 array (N,). Raises ValueError."""
    try:
        values = np.array(betas, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"betas must be one row of numbers 0 < β < 1, not {betas!r}") from None
    if values.ndim != 1 or not 1 <= len(values) <= MOST_STEPS or not np.all((values > 0) & (values < 1)):
        shown = np.array2string(values, threshold=4)
        raise ValueError(f"betas must be one row of numbers 0 < β < 1, at most {MOST_STEPS}, not {shown}")
    return values


def _betas(type: str, start: float, end: float, count: int) -> Any:
    """β of every training step, for a type in `TYPES`. Raises ValueError."""
    if type not in TYPES:
        raise ValueError(f"schedule type {type!r} is not one of {', '.join(TYPES)}")
    if not isinstance(count, numbers.Integral) or not 1 <= count <= MOST_STEPS:
        raise ValueError(f"diffusion_step is {count!r}, it must be a whole number from 1 to {MOST_STEPS}")
    if type == "cosine":
        edges = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - edges[1:] / edges[:-1], 0.999)
    for name, value in (("beta_start", start), ("beta_end", end)):
        if not isinstance(value, numbers.Real):
            raise ValueError(f"{name} is {value!r}, it must be a number")
    if not 0 < start <= end < 1:
        raise ValueError(f"betas must satisfy 0 < beta_start <= beta_end < 1, not {start}, {end}")
    if type == "linear":
        return np.linspace(start, end, count, dtype=np.float64)
    return np.square(np.linspace(start**0.5, end**0.5, count, dtype=np.float64))


def betas_of(alphas_cumprod: Any) -> Any:
    """β of every training step (N,), of ᾱ (N,)."""
    return 1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])


def eps_from(output: Any, x: Any, signal: Any, noise: Any, prediction: str) -> Any:
    """ε of x = √ᾱ · x_0 + √(1−ᾱ) · ε, from a network's output at x.

    output: a tensor like x. signal, noise: √ᾱ and √(1−ᾱ) > 0 of x, numbers or tensors that broadcast to x.
    prediction: what the output is, a name in `PREDICTIONS`: "epsilon" ε itself, "v_prediction"
    v = √ᾱ · ε − √(1−ᾱ) · x_0 (Salimans & Ho 2022), "sample" x_0, "flow_prediction" ε − x_0 (flow matching).
    """
    if prediction == "v_prediction":
        return signal * output + noise * x
    if prediction == "flow_prediction":
        return (x + signal * output) / (signal + noise)
    if prediction == "sample":
        return (x - signal * output) / noise
    return output
