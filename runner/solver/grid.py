"""Grids: the times of a run. n steps are n + 1 falling times; the images are at the last.

The table `SPACINGS` has the ways to choose them: a function (steps, schedule) → the times of the n network calls of a
multistep method, real numbers that fall from N − 1 or less (N: steps of training). The end, t = −1 (clean data), is not
among them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pndm.runner.solver.schedule import Schedule


def uniform(steps: int, schedule: Schedule) -> list[float]:
    """Equal steps of t: k·N/steps for k = steps−1 … 0, as in the released code of PNDM and DDIM's "uniform"."""
    return [k * schedule.diffusion_step / steps for k in reversed(range(steps))]


def quad(steps: int, schedule: Schedule) -> list[float]:
    """Equal steps of √t from N−1 to 0: DDIM (Song et al. 2021), appendix D.2, with c such that the first is N−1."""
    return _between(schedule, steps, lambda t: t**0.5, lambda root: root**2)


def trailing(steps: int, schedule: Schedule) -> list[float]:
    """Equal steps of t from N−1 to clean data: Lin et al. 2024, "Common diffusion noise schedules …", table 2."""
    return [(k + 1) * schedule.diffusion_step / steps - 1 for k in reversed(range(steps))]


def logsnr(steps: int, schedule: Schedule, first: float | None = None, last: float = 0.0) -> list[float]:
    """Equal steps of λ = log(√ᾱ/√(1−ᾱ)) from N−1 to 0: DPM-Solver (Lu et al. 2022), section 3.3.

    first, last: times in place of N−1 and 0.
    """
    return _between(schedule, steps, schedule.half_log_snr, schedule.time, first, last)


def karras(steps: int, schedule: Schedule, first: float | None = None, last: float = 0.0) -> list[float]:
    """Equal steps of σ^(1/7), σ = √(1/ᾱ − 1), from N−1 to 0: Karras et al. 2022, Eq. (5), ρ = 7.

    first, last: times in place of N−1 and 0.
    """

    def root(t: float) -> float:
        return math.exp(-schedule.half_log_snr(t) / 7)

    return _between(schedule, steps, root, lambda root: schedule.time(-7 * np.log(root)), first, last)


def _between(
    schedule: Schedule,
    steps: int,
    forth: Callable[[float], Any],
    back: Callable[[Any], Any],
    first: float | None = None,
    last: float = 0.0,
) -> list[float]:
    """N−1 … 0, or first … last, in steps that are equal after the map `forth`; `back` is its inverse, for arrays."""
    first = float(schedule.diffusion_step - 1) if first is None else first
    if steps == 1:
        return [first]
    inner = back(np.linspace(forth(first), forth(last), steps)[1:-1])
    return [first, *inner.tolist(), last]


SPACINGS: dict[str, Callable[..., list[float]]] = {
    "uniform": uniform,
    "quad": quad,
    "trailing": trailing,
    "logsnr": logsnr,
    "karras": karras,
}
LIMITED = ("logsnr", "karras")  # the spacings that take limits of σ


def grid_of(
    schedule: Schedule,
    steps: int,
    spacing: str = "uniform",
    times: Sequence[float] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    noisy_end: bool = False,
) -> list[float]:
    """The steps + 1 times of a run: those of a spacing and −1, or `times` as they are given.

    sigma_min, sigma_max: the noise levels σ = √(1/ᾱ − 1) between which spacing logsnr or karras lies; by default those
    of t = 0 and t = N−1. noisy_end: the run ends at the last time of the spacing, without the step into clean data.
    Raises ValueError for a number of steps outside 1 … N (N − 1 with noisy_end), an unknown spacing, wrong times, and
    levels outside the schedule's.
    """
    total = schedule.diffusion_step
    if not isinstance(spacing, str) or spacing not in SPACINGS:
        raise ValueError(f"spacing {spacing!r} is not one of {', '.join(SPACINGS)}")
    limits = _limits(schedule, spacing, sigma_min, sigma_max)
    if times is not None:
        if spacing != "uniform":
            raise ValueError(f"spacing {spacing!r} and times exclude each other")
        if noisy_end:
            raise ValueError("noisy_end and times exclude each other: the last of times is the end")
        return _checked(floats("times", times), total)
    most = total - noisy_end
    if not 1 <= steps <= most:
        able = f"a whole number from 1 to {most}" if most else "with one training step, and noisy_end, no number"
        raise ValueError(f"{steps} steps cannot be run; {able} can")
    if noisy_end:
        return SPACINGS[spacing](steps + 1, schedule, **limits)
    return [*SPACINGS[spacing](steps, schedule, **limits), -1.0]


def _limits(schedule: Schedule, spacing: str, sigma_min: float | None, sigma_max: float | None) -> dict[str, float]:
    """The first and last time of a spacing, by limits of σ; empty without any. Raises ValueError."""
    if sigma_min is None and sigma_max is None:
        return {}
    if spacing not in LIMITED:
        raise ValueError(f"sigma_min and sigma_max go with spacing {' or '.join(LIMITED)} alone, not {spacing!r}")
    total = schedule.diffusion_step
    least, most = float(schedule.rho(0)), float(schedule.rho(total - 1))
    low, high = (least if sigma_min is None else sigma_min), (most if sigma_max is None else sigma_max)
    if not least * (1 - 1e-9) <= low < high <= most * (1 + 1e-9):
        raise ValueError(
            f"sigma_min {low:g} and sigma_max {high:g} must rise, within the schedule's levels {least:.6g} … {most:.6g}"
        )
    first, last = schedule.time(-math.log(high)), schedule.time(-math.log(low))
    return {"first": min(float(first), total - 1.0), "last": max(float(last), 0.0)}


def floats(name: str, values: Iterable[Any]) -> list[float]:
    """`values` as a list of floats. Raises ValueError if they are no list of numbers; name: what they are called."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a list of numbers, not {values!r}") from None


def _checked(times: list[float], total: int) -> list[float]:
    rule = f"times must be two or more and fall from {total - 1} to 0, except the last, which may be −1 (clean data)"
    if len(times) < 2:
        raise ValueError(f"{rule}; they are {times}")
    for place, t in enumerate(times):
        clean = t == -1 and place == len(times) - 1
        if not (clean or 0 <= t <= total - 1):
            raise ValueError(f"{rule}; times[{place}] is {t:.9g}")
    for place, (t, s) in enumerate(pairwise(times), 1):
        if t <= s:
            raise ValueError(f"{rule}; times[{place}] is {s:.9g} after {t:.9g}")
    return times
