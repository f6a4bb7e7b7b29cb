"""Multistep methods: the gradient part combines the newest gradient with those of earlier steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pndm.runner.solver.events import Method, Step, Tensor, Trajectory
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
    """

    order: int
    start: StepFunction | None = None
    part: type[Pseudo] = Pseudo
    rule: Rule = equal_steps
    taper: bool = False
    starts: int | None = None
    with_options: Method | None = None

    def trajectory(self, x: Tensor, schedule: Schedule, grid: Sequence[float], **options: Any) -> Trajectory:
        """Only the first gradient of a starting step enters the history.

        A step into clean data (ᾱ = 1) is never a starting step, since no ε exists there. It takes the order that the
        history allows.
        """
        part = self.part(schedule, **options)
        starts = self.order - 1 if self.starts is None else self.starts
        times: list[float] = []
        history: list[Tensor] = []
        for number, (t, s) in enumerate(pairwise(grid), 1):
            if self.start and number <= starts and part.alpha(s) < 1:
                gradient, stages = yield from self.start(part, x, t, s)
                order = len(stages)
                times, history = [t, *times], [stages[0], *history]
            else:
                newest = yield from part.gradient(x, t)
                times, history = [t, *times][: self.order], [newest, *history][: self.order]
                order = min(len(history), len(grid) - number) if self.taper else len(history)
                gradient = combine(self.rule(part, times[:order], t, s), history[:order])
            x = part.transfer(x, gradient, t, s)
            yield Step(x, s, order)


@dataclass(frozen=True)
class PredictorCorrector(Method):
    """UniPC (Zhao et al. 2023, algorithms 1 and 2): a step is taken again once the gradient at its end is known.

    order: the number of gradients that the predictor combines. rule: the weights. part: the transfer part.
    """

    order: int
    rule: Rule
    part: type[Pseudo] = Data

    def trajectory(self, x: Tensor, schedule: Schedule, grid: Sequence[float], **options: Any) -> Trajectory:
        """The gradient stays that at the predicted x, so that a step is one call.

        The reported states are the predicted ones. The last of them is the result. What is changed in such a state
        from outside is carried over to the corrected one.
        """
        part = self.part(schedule, **options)
        times: list[float] = []
        history: list[Tensor] = []
        order, before, predicted = 0, x, x
        for number, (t, s) in enumerate(pairwise(grid), 1):
            newest = yield from part.gradient(x, t)
            if history:
                corrector = self.rule(part, [t, *times[:order]], times[0], t)
                gradient = combine(corrector, [newest, *history[:order]])
                x = part.transfer(before, gradient, times[0], t) + (x - predicted)
            times, history = [t, *times][: self.order], [newest, *history][: self.order]
            order = min(len(history), len(grid) - number)
            before = x
            x = part.transfer(x, combine(self.rule(part, times[:order], t, s), history[:order]), t, s)
            predicted = x.clone()
            yield Step(x, s, order)
