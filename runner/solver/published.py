"""The released code of the paper, with its quirks: the profile "published".

A profile says whose method runs: "exact" is the paper (`METHODS`), "published" the released code (`PUBLISHED`). The
quirks are listed in docs/methods.md.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pndm.runner.solver.adaptive import Control, Flow, dormand_prince
from pndm.runner.solver.events import Combination, Gradient, Method, Query, Tensor, Trajectory
from pndm.runner.solver.grid import uniform
from pndm.runner.solver.multistep import Multistep
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.singlestep import improved_euler, runge_kutta
from pndm.runner.solver.transfer import Classical, Pseudo, phi

PROFILES = ("exact", "published")


class PublishedSchedule(Schedule):
    """The released code's ᾱ: read one index late, and truncated at half steps. So t = −1 is ᾱ₀, not 1."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(betas=schedule.betas)

    def alpha_cumprod(self, t: Any) -> Any:
        return self.alphas_cumprod[int(t) + 1]


class PublishedClassical(Classical):
    """FON's slope in the released code: x − φ(x, ε, t, t−1), a φ-step over one training step.

    origin: the x and t of the slope in place of those of ε.
    """

    def __init__(self, schedule: Schedule, origin: tuple[Tensor, float] | None = None) -> None:
        super().__init__(schedule)
        self.origin = origin

    def gradient(self, x: Tensor, t: float) -> Gradient:
        eps = yield Query(x, t)
        x, t = self.origin or (x, t)
        return x - phi(x, eps, self.alpha(t), self.alpha(t - 1))


def published_runge_kutta(part: Pseudo, x: Tensor, t: float, s: float) -> Combination:
    """Start of FON in the released code: every stage takes its slope from where the step began; ε is its own."""
    return runge_kutta(PublishedClassical(part.schedule, (x, t)), x, t, s)


class PublishedAdaptive(Method):
    """PF of the released code: one step size for the whole batch, tolerances of 1e-5, ᾱ in closed form.

    The closed form is that of linear β between the first and the last β, whatever the schedule is. The time τ falls
    from 1 to 1e-3; the network is told t = τ(N − 1).
    """

    adaptive = True

    def trajectory(self, x: Tensor, schedule: Schedule, grid: Sequence[float], **options: Any) -> Trajectory:
        total, first, last = schedule.diffusion_step, schedule.betas[0], schedule.betas[-1]
        flow = Flow(
            alpha=lambda tau: np.exp(-total * (tau * first + tau**2 / 2 * (last - first))),
            slope=lambda tau: -total * (first + tau * (last - first)),
            clock=lambda tau: tau * (total - 1),
        )
        return dormand_prince(flow, x, 1.0, 1e-3, Control(rtol=1e-5, atol=1e-5, joint=True))


PUBLISHED: dict[str, Method] = {
    "DDIM": Multistep(order=1),
    "S-PNDM": Multistep(order=2, start=improved_euler),
    "F-PNDM": Multistep(order=4, start=runge_kutta),
    "FON": Multistep(order=4, start=published_runge_kutta, part=PublishedClassical),
    "PF": PublishedAdaptive(),
}


def published_counts(total: int) -> list[int]:
    """The numbers of steps that the released code takes as it is asked to, out of `total` training steps."""
    return [n for n in range(1, total) if total % n == 0]


def published_grid(schedule: Schedule, steps: int) -> list[float]:
    """The steps + 1 times of the released code. Raises ValueError for a number of steps that it cannot run."""
    able = published_counts(schedule.diffusion_step)
    if steps not in able:
        raise ValueError(f"profile 'published' cannot run {steps} steps; it can run {', '.join(map(str, able))}")
    return [*uniform(steps, schedule), -1.0]
