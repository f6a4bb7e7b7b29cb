"""What a method says to whoever drives it: it asks for ε and for noise, and tells when a step is done."""

from typing import NamedTuple


class Query(NamedTuple):
    """A request for ε(x, t): x (m, …), t one float for all images or a float64 array (m,)."""

    x: object
    t: object


class Draw(NamedTuple):
    """A request for standard normal noise like x (n, …)."""

    x: object


class Step(NamedTuple):
    """x (n, …) as it stands at time t, after a step."""

    x: object
    t: object


class NotFinite(ArithmeticError):
    """The network returned NaN or infinity; the message says when."""
