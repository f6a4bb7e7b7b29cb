"""A method whose coefficients are given as a table, one row a step: what a search for the best sampler finds.

Every explicit linear method with one network call a step is such a table (`tabulate`). It is a line of the same frame:
the gradient part combines all ε's so far with the weights of its row, the transfer part is φ. Beside them stands the
time that the network is told in each call, which need not be that of the noise level of x.

The family is the generalised solver of Oganov et al. 2025, "GAS", arXiv:2510.17699, up to the weight of x, which here
follows from φ. Frankel et al. 2025, "S4S", arXiv:2502.17423, search the same with fewer ε's in a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from pndm.runner.solver.events import Draw, Method, OneStep, Query, Step, Tensor, Told
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import drive
from pndm.runner.solver.transfer import Pseudo, phi
from pndm.runner.solver.weights import combine


@dataclass(frozen=True)
class Tabulated(Method):
    """A multistep method of N steps and N network calls.

    weights: N rows; row i = 1 … N has the i weights of the ε's of step i, newest first. told: the N times that the
    network is told, 0 … the last training step.
    """

    weights: tuple[tuple[float, ...], ...]
    told: tuple[float, ...]

    def step(
        self, x: Tensor, memory: Any, schedule: Schedule, grid: Sequence[float], number: int, **options: Any
    ) -> OneStep:
        """The memory is all ε's so far. grid: N + 1 times; of fewer, the last ones: the run begins inside.

        Then the gradients of earlier calls are not known. Their weights go to the oldest that is.
        """
        t, s = grid[number : number + 2]
        place = number - (len(grid) - 1)  # from the end
        history = ((yield Told(x, self.told[place], level=t)), *(memory or ()))
        row, known = self.weights[place], len(history)
        gradient = combine([*row[: known - 1], sum(row[known - 1 :])], history)
        return Pseudo(schedule).transfer(x, gradient, t, s), known, history


def tabulate(line: Method, schedule: Schedule, grid: Sequence[float]) -> Tabulated:
    """The `Tabulated` that makes the steps of a method on `grid`, from noise to clean data.

    A linear method's states are sums of x and ε's. So it is driven with unit vectors for them, and the states are the
    coefficients. Raises ValueError of a method that is not of this kind.
    """
    steps = len(grid) - 1
    unit = torch.eye(steps + 1, dtype=torch.float64)
    states: list[Tensor] = []
    told: list[float] = []

    def answer(event: Query | Draw) -> Tensor:
        if isinstance(event, Draw) or len(told) == steps:
            raise ValueError("not one network call a step, or noise is drawn")
        states.append(event.x[0])
        told.append(float(event.t))
        return unit[len(told)][None]

    for event in drive(line.trajectory(unit[:1], schedule, grid), answer):
        if isinstance(event, Step):
            end = event.x
    rows = []
    for i, ((x, after), (t, s)) in enumerate(zip(pairwise([*states, end[0]]), pairwise(grid), strict=True), 1):
        ratio, weight = (
            float(phi(*pair, schedule.alpha_cumprod(t), schedule.alpha_cumprod(s))) for pair in ((1, 0), (0, 1))
        )
        row = (after - ratio * x) / weight
        if abs(row[0]) > 1e-6 or told[i - 1] != t:
            raise ValueError("x is not moved by the transfer part φ")
        rows.append(tuple(row[1 : i + 1].flip(0).tolist()))
    return Tabulated(tuple(rows), tuple(told))
