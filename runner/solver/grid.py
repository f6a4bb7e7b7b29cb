"""Grids of times: N steps are N + 1 falling times, the last of which is where the images are.

A grid of a spacing ends at t = −1, clean data, and is real-valued, so that every count of steps can be run. What
the spacings are equal in is their table, `SPACINGS`.
"""

import math
from itertools import pairwise

import numpy as np


def uniform(steps, schedule):
    """k·N/steps for k = steps−1 … 0: equal steps, as in the released code of PNDM and DDIM's "uniform"."""
    return [k * schedule.diffusion_step / steps for k in reversed(range(steps))]


def quad(steps, schedule):
    """Equal steps of √t from N−1 to 0: DDIM (Song et al. 2021), appendix D.2, with c such that the first is N−1."""
    return _between(schedule, steps, lambda t: t**0.5, lambda root: root**2)


def trailing(steps, schedule):
    """Equal steps from N−1 on, down to clean data: Lin et al. 2024, "Common diffusion noise schedules …", table 2."""
    return [(k + 1) * schedule.diffusion_step / steps - 1 for k in reversed(range(steps))]


def logsnr(steps, schedule):
    """Equal steps of λ = log(√ᾱ/√(1−ᾱ)) from N−1 to 0: DPM-Solver (Lu et al. 2022), section 3.4."""
    return _between(schedule, steps, schedule.half_log_snr, schedule.time)


def karras(steps, schedule):
    """Equal steps of σ^(1/7), σ = √(1/ᾱ − 1), from N−1 to 0: Karras et al. 2022, Eq. (5), ρ = 7."""
    return _between(
        schedule,
        steps,
        lambda t: math.exp(-schedule.half_log_snr(t) / 7),
        lambda root: schedule.time(-7 * np.log(root)),
    )


def _between(schedule, steps, forth, back):
    """N−1 … 0 in steps that are equal after the map `forth`; `back` is its inverse, for arrays."""
    first = float(schedule.diffusion_step - 1)
    inner = back(np.linspace(forth(first), forth(0.0), steps)[1:-1])
    return [first, *inner.tolist(), 0.0][:steps] if steps > 1 else [first]


SPACINGS = {"uniform": uniform, "quad": quad, "trailing": trailing, "logsnr": logsnr, "karras": karras}


def grid_of(schedule, steps, profile, spacing="uniform", times=None):
    """The steps + 1 times of a run: `times` as given, or of a spacing. Raises ValueError on what cannot be run.

    The profile "published" has the uniform spacing alone, at the counts where the released code takes the number of
    steps that it was asked for.
    """
    total = schedule.diffusion_step
    if not isinstance(spacing, str) or spacing not in SPACINGS:
        raise ValueError(f"spacing {spacing!r} is not one of {', '.join(SPACINGS)}")
    if profile == "published" and (spacing != "uniform" or times is not None):
        raise ValueError("profile 'published' has the uniform spacing alone; spacing and times need profile 'exact'")
    if times is not None:
        if spacing != "uniform":
            raise ValueError(f"spacing {spacing!r} and times exclude each other")
        return _checked(times, total)
    if profile == "published" and (steps < 1 or steps >= total or total % steps):
        able = ", ".join(map(str, counts(total, profile)))
        raise ValueError(f"profile 'published' cannot run {steps} steps; it can run {able}")
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} steps cannot be run; a whole number from 1 to {total} can")
    return [*SPACINGS[spacing](steps, schedule), -1.0]


def counts(total, profile):
    """The numbers of steps that a profile can run."""
    return [n for n in range(1, total) if total % n == 0] if profile == "published" else range(1, total + 1)


def floats(name, values):
    """`values` as a list of floats. Raises ValueError, saying what has the values, if they are none."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a list of numbers, not {values!r}") from None


def _checked(times, total):
    times = floats("times", times)
    falling = all(a > b for a, b in pairwise(times))
    if len(times) < 2 or not falling or times[0] > total - 1 or times[-2] < 0 or -1 != times[-1] < 0:
        raise ValueError(
            f"times must be two or more and fall, from {total - 1} at most to 0 at least, "
            "but for the last, which may be −1 (clean data)"
        )
    return times
