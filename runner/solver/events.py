"""How a method speaks with whoever drives it: it asks for ε and for noise, and reports every step.

A method never calls a network. It is a generator that yields `Query(x, t)` and is sent ε, yields `Draw(x)` and is sent
noise, and yields `Step(x, t, order)` when a step is done. `solve.solve` answers it with a network.
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pndm.runner.solver.schedule import Schedule

if TYPE_CHECKING:
    import torch  # `--help` reads the methods and need not wait for torch

Tensor: TypeAlias = "torch.Tensor"
Times: TypeAlias = NDArray[np.float64]
Time: TypeAlias = float | Times  # of all images, or one each


class Query(NamedTuple):
    """A request for ε(x, t): x (m, …); t one float for all images, or a float64 array (m,).

    Example:

        >>> import torch
        >>> from pndm import Query, Schedule, trajectory
        >>> event = next(trajectory("DDIM", torch.zeros(1, 1), Schedule(), steps=10))
        >>> isinstance(event, Query), event.t
        (True, 900.0)
    """

    x: Tensor
    t: Time

    @property
    def level(self) -> Time:
        """The time of x's level of noise."""
        return self.t


class Told(Query):
    """A `Query` whose x has the level of noise of another time than the t that the network is told."""

    _level: Time

    def __new__(cls, x: Tensor, t: Time, level: Time) -> "Told":
        """x, t: as of `Query`; level: the time of x's level of noise."""
        query = super().__new__(cls, x, t)
        query._level = level
        return query

    @property
    def level(self) -> Time:
        """The time of x's level of noise."""
        return self._level


class Draw(NamedTuple):
    """A request for standard normal noise like x (n, …).

    Example:

        >>> import torch
        >>> from pndm import Draw, Schedule, trajectory
        >>> events = trajectory("DDPM", torch.zeros(1, 1), Schedule(), steps=10)
        >>> query = next(events)
        >>> isinstance(events.send(torch.zeros(1, 1)), Draw)
        True
    """

    x: Tensor


class Step(NamedTuple):
    """The state after a step: x (n, …) at time t, one float or a float64 array (n,).

    order: the number of ε's that the step combined; of a Runge–Kutta step the number of its stages.

        >>> import torch
        >>> from pndm import Schedule, Step, trajectory
        >>> events = trajectory("DDIM", torch.zeros(1, 1), Schedule(), steps=10)
        >>> query = next(events)
        >>> step = events.send(torch.zeros(1, 1))
        >>> isinstance(step, Step), step.t, step.order
        (True, 800.0, 1)
    """

    x: Tensor
    t: Time
    order: int


class NotFinite(ArithmeticError):
    """The network returned NaN or infinity. The message says at which time.

    Example:

        >>> import torch
        >>> from pndm import NotFinite, Schedule, solve
        >>> try:
        ...     states = list(solve("PF", lambda x, t: x / 0, torch.ones(1, 1), Schedule(), steps=10))
        ... except NotFinite:
        ...     print("not finite")
        not finite
    """


Trajectory: TypeAlias = Generator[Query | Draw | Step, Any, None]
OneStep: TypeAlias = Generator[Query | Draw, Any, tuple[Tensor, int, Any]]
Gradient: TypeAlias = Generator[Query, Any, Any]
Combination: TypeAlias = Generator[Query, Any, tuple[Any, Sequence[Any]]]


class Method:
    """A line of the table `METHODS`. Its classes are `Multistep`, `Singlestep` and the others in this folder.

    adaptive: True if the method chooses its own steps. Its `trajectory` is given an empty grid then.
    part: the transfer part, if there is one.
    with_options: the line that runs in place of this one when an option differs from its default.

    docs/add-a-method.md writes one.

        >>> from pndm import METHODS, Method
        >>> isinstance(METHODS["F-PNDM"], Method), METHODS["PF"].adaptive
        (True, True)
        >>> METHODS["DDPM"].draws()
        True
    """

    adaptive: bool = False
    part: type[Any] | None = None
    with_options: "Method | None" = None

    @property
    def options(self) -> frozenset[str]:
        """The names in `OPTIONS` that the method takes."""
        if self.with_options:
            return self.with_options.options
        return self.part.options if self.part else frozenset()

    def draws(self, **options: Any) -> bool:
        """Whether the method draws noise in its steps when it is given these options."""
        return self.with_options is not None and self.with_options.draws(**options)

    def step(
        self, x: Tensor, memory: Any, schedule: Schedule, grid: Sequence[float], number: int, **options: Any
    ) -> OneStep:
        """One step, from x (n, …) at time grid[number] to time grid[number + 1]: a generator of queries and draws.

        memory: what the step before has returned, None in the first step of a grid. It is made of tensors, numbers and
            tuples alone, and the method has no other state. So a run can be copied and saved between two calls.
        options: a value for each name in `self.options`.

        Returns x at the end of the step, the order (as `Step` has it), and the memory for the next step.
        """
        raise NotImplementedError

    def trajectory(self, x: Tensor, schedule: Schedule, grid: Sequence[float], **options: Any) -> Trajectory:
        """The generator of queries, draws and steps from x (n, …) at time grid[0] to time grid[-1]."""
        memory = None
        for number, s in enumerate(grid[1:]):
            x, order, memory = yield from self.step(x, memory, schedule, grid, number, **options)
            yield Step(x, s, order)
