"""A run as a value: it can be copied and pickled at any network call, and continued by callers without a loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from pndm.runner.solver.events import Draw, Method, Query, Step
from pndm.runner.solver.methods import method_named
from pndm.runner.solver.multistep import Multistep
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import calls, nothing


class Span(NamedTuple):
    """A method over some times. starts: how many steps of a `Multistep` are starting steps; None: as its line says."""

    method: str | Method
    grid: Sequence[float]
    starts: int | None = None

    @property
    def line(self) -> Method:
        line = method_named(self.method)
        return replace(line, starts=self.starts) if isinstance(line, Multistep) and self.starts is not None else line

    def calls(self, schedule: Schedule) -> list[list[Query]]:
        """The network calls, one list a step."""
        return calls(self.line.trajectory(nothing(), schedule, self.grid))


def spans(method: str | Method, grid: Sequence[float]) -> list[Span]:
    """A whole run over falling times. A last step of no length is DDIM's, which leaves x as it is."""
    if grid[-1] < grid[-2]:
        return [Span(method, grid)]
    still = Span("DDIM", grid[-2:])
    return [Span(method, grid[:-1]), still] if len(grid) > 2 else [still]


def rest_of(whole: list[Span], schedule: Schedule, done: int) -> list[Span]:
    """What is left of a run behind its first `done` network calls. It makes the calls that are left, at their times.

    The gradients of earlier calls are not known. So behind the starting steps the combination begins with order 1. If
    the run begins inside a step, the rest of that step is taken as DDIM steps between the times of its calls.
    """
    (method, grid, _), *later = whole
    steps = whole[0].calls(schedule)
    while steps and done >= len(steps[0]):
        done -= len(steps[0])
        steps, grid = steps[1:], grid[1:]
    if not steps:
        return rest_of(later, schedule, done)
    begun = []
    if done:
        begun = [Span("DDIM", [*(float(query.level) for query in steps[0][done:]), grid[1]])]
        steps, grid = steps[1:], grid[1:]
    rest = [Span(method, grid, starts=sum(len(asked) > 1 for asked in steps))] if steps else []
    return begun + rest + later


@dataclass
class Run:
    """A run between two network calls.

    spans: what is left of it, the current one first. number: the step of that span which is under way.
    x, memory: where that step began, and what the one before it left. replies: what has been answered in it.
    """

    spans: list[Span]
    x: Tensor
    memory: Any = None
    number: int = 0
    replies: list[Tensor] = field(default_factory=list)

    def query(self, schedule: Schedule, **options: Any) -> Query:
        """The network call that is next."""
        query: Query = self._replayed(schedule, options)[1]
        return query

    def answer(
        self, eps: Tensor, noise: Callable[[Tensor], Tensor], schedule: Schedule, **options: Any
    ) -> Query | Step:
        """Go on by one network call, with its ε, and noise(x) where the method draws. Returns what comes then."""
        (_, grid, _), *later = self.spans
        events, _ = self._replayed(schedule, options)
        replies = [*self.replies, eps]  # kept once all went well
        try:
            event: Query | Draw = events.send(eps)
            while isinstance(event, Draw):
                replies.append(noise(event.x))
                event = events.send(replies[-1])
        except StopIteration as end:
            self.x, order, self.memory = end.value
        else:
            self.replies = replies
            return event
        self.replies, self.number = [], self.number + 1
        s = grid[self.number]
        if self.number == len(grid) - 1:
            self.spans, self.number, self.memory = later, 0, None
        return Step(self.x, s, order)

    def _replayed(self, schedule: Schedule, options: dict[str, Any]) -> tuple[Any, Any]:
        """The step under way, and what it asks now: it is made anew, and told the replies again."""
        span = self.spans[0]
        line = (span.line.with_options if options else None) or span.line
        events = line.step(self.x, self.memory, schedule, span.grid, self.number, **options)
        event = next(events)
        for reply in self.replies:
            event = events.send(reply)
        return events, event
