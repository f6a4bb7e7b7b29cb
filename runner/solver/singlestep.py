"""Runge–Kutta steps: the starting steps of the multistep methods, and the methods that take such steps alone.

A step function `step(part, x, t, s)` is a generator. It asks for gradients on the way from x at time t to time s. It
returns the combination that carries x to s, and the gradients it is made of; the first is that at x and t.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pndm.runner.solver.events import Combination, Method, OneStep, Tensor
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.transfer import Pseudo
from pndm.runner.solver.weights import combine, exact, in_lambda

StepFunction: TypeAlias = Callable[[Pseudo, Tensor, float, float], Combination]


def improved_euler(part: Pseudo, x: Tensor, t: float, s: float) -> Combination:
    """(g₁ + g₂) / 2, the mean of the gradients at both ends of the step: the start of S-PNDM."""
    g1 = yield from part.gradient(x, t)
    g2 = yield from part.gradient(part.transfer(x, g1, t, s), s)
    return (g1 + g2) / 2, (g1, g2)


def runge_kutta(part: Pseudo, x: Tensor, t: float, s: float) -> Combination:
    """(g₁ + 2g₂ + 2g₃ + g₄) / 6, the classical Runge–Kutta method: the start of F-PNDM and FON."""
    middle = (t + s) / 2
    g1 = yield from part.gradient(x, t)
    g2 = yield from part.gradient(part.transfer(x, g1, t, middle), middle)
    g3 = yield from part.gradient(part.transfer(x, g2, t, middle), middle)
    g4 = yield from part.gradient(part.transfer(x, g3, t, s), s)
    return (g1 + 2 * g2 + 2 * g3 + g4) / 6, (g1, g2, g3, g4)


def midpoint(part: Pseudo, x: Tensor, t: float, s: float) -> Combination:
    """g₂, the gradient halfway in λ: DPM-Solver-2 (Lu et al. 2022, algorithm 1)."""
    middle = part.between(t, s, 1 / 2)
    g1 = yield from part.gradient(x, t)
    g2 = yield from part.gradient(part.transfer(x, g1, t, middle), middle)
    return g2, (g1, g2)


def kutta(part: Pseudo, x: Tensor, t: float, s: float) -> Combination:
    """DPM-Solver-3 (Lu et al. 2022, algorithm 2): stages at 1/3 and 2/3 in λ.

    The transfer to the second of them, and the one to s, are along the mean of a line in λ: through the first gradient
    and the newest.
    """
    line = in_lambda(exact)
    third, two_thirds = part.between(t, s, 1 / 3), part.between(t, s, 2 / 3)
    g1 = yield from part.gradient(x, t)
    g2 = yield from part.gradient(part.transfer(x, g1, t, third), third)
    mean = combine(line(part, (t, third), t, two_thirds), (g1, g2))
    g3 = yield from part.gradient(part.transfer(x, mean, t, two_thirds), two_thirds)
    return combine(line(part, (t, two_thirds), t, s), (g1, g3)), (g1, g2, g3)


@dataclass(frozen=True)
class Singlestep(Method):
    """The same step function all along. The last step, into clean data (ᾱ = 1), is DDIM's, since no ε exists there.

    function: a step function of this module, or one like them. part: the transfer part.

        >>> from pndm import METHODS, Singlestep
        >>> isinstance(METHODS["Heun"], Singlestep), METHODS["Heun"].function.__name__
        (True, 'improved_euler')
    """

    function: StepFunction
    part: type[Pseudo] = Pseudo

    def step(
        self, x: Tensor, memory: Any, schedule: Schedule, grid: Sequence[float], number: int, **options: Any
    ) -> OneStep:
        part = self.part(schedule, **options)
        t, s = grid[number : number + 2]
        if part.alpha(s) < 1:
            gradient, stages = yield from self.function(part, x, t, s)
            order = len(stages)
        else:
            gradient = yield from part.gradient(x, t)
            order = 1
        return part.transfer(x, gradient, t, s), order, None
