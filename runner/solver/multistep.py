"""Multistep methods: the gradient part combines the newest gradient with those of earlier steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pndm.runner.solver.events import Method, OneStep, Tensor
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.singlestep import StepFunction
from pndm.runner.solver.transfer import Data, Pseudo
from pndm.runner.solver.weights import Rule, combine, equal_steps


@dataclass(frozen=True)
class Multistep(Method):
    """Algorithm 2 of the paper: starting steps, then the combination of the last `order` gradients.

    order: the number of gradients that are combined.
    start: the step function of the starting steps; None: the combination starts with order 1, 2, ….
    part: the transfer part. rule: the weights of the combination.
    taper: the last steps take no higher order than steps are left.
    starts: the number of starting steps, order − 1 in the paper.
    with_options: the line that runs in place of this one when an option differs from its default.

        >>> from pndm import METHODS, Multistep, Pseudo
        >>> METHODS["iPNDM4"] == Multistep(order=4, start=None, part=Pseudo)
        True
    """

    order: int
    start: StepFunction | None = None
    part: type[Pseudo] = Pseudo
    rule: Rule = equal_steps
    taper: bool = False
    starts: int | None = None
    with_options: Method | None = None

    def step(
        self, x: Tensor, memory: Any, schedule: Schedule, grid: Sequence[float], number: int, **options: Any
    ) -> OneStep:
        """Only the first gradient of a starting step enters the history, which is the memory, with its times.

        A step into clean data (ᾱ = 1) is never a starting step, since no ε exists there. It takes the order that the
        history allows.
        """
        part = self.part(schedule, **options)
        starts = self.order - 1 if self.starts is None else self.starts
        t, s = grid[number : number + 2]
        times, history = memory or ((), ())
        if self.start and number < starts and part.alpha(s) < 1:
            gradient, stages = yield from self.start(part, x, t, s)
            order = len(stages)
            times, history = (t, *times), (stages[0], *history)
        else:
            newest = yield from part.gradient(x, t)
            times, history = (t, *times)[: self.order], (newest, *history)[: self.order]
            order = min(len(history), len(grid) - 1 - number) if self.taper else len(history)
            gradient = combine(self.rule(part, times[:order], t, s), history[:order])
        return part.transfer(x, gradient, t, s), order, (times, history)


@dataclass(frozen=True)
class PredictorCorrector(Method):
    """UniPC (Zhao et al. 2023, algorithms 1 and 2): a step is taken again once the gradient at its end is known.

    order: the number of gradients that the predictor combines. rule: the weights. part: the transfer part.
    """

    order: int
    rule: Rule
    part: type[Pseudo] = Data

    def step(
        self, x: Tensor, memory: Any, schedule: Schedule, grid: Sequence[float], number: int, **options: Any
    ) -> OneStep:
        """The gradient stays that at the predicted x, so that a step is one call.

        The returned states are the predicted ones. The last of them is the result. What is changed in such a state
        from outside is carried over to the corrected one.
        """
        part = self.part(schedule, **options)
        t, s = grid[number : number + 2]
        state: Any = memory or ((), (), 0, x, x)
        times, history, order, before, predicted = state
        newest = yield from part.gradient(x, t)
        if history:
            corrector = self.rule(part, [t, *times[:order]], times[0], t)
            gradient = combine(corrector, [newest, *history[:order]])
            x = part.transfer(before, gradient, times[0], t) + (x - predicted)
        times, history = (t, *times)[: self.order], (newest, *history)[: self.order]
        order = min(len(history), len(grid) - 1 - number)
        end = part.transfer(x, combine(self.rule(part, times[:order], t, s), history[:order]), t, s)
        return end, order, (times, history, order, x, end.clone())
