"""The options of the methods. Each is declared once, here; checks, experiment keys and flags follow from `OPTIONS`."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Kind: TypeAlias = "type[float] | type[bool]"

# How a range is said, by the keywords that its limits have.
RANGES = {
    (): "a number",
    ("ge", "le"): "a number from {ge:g} to {le:g}",
    ("gt", "lt"): "a number between {gt:g} and {lt:g}, both excluded",
    ("ge", "lt"): "a number from {ge:g} to below {lt:g}",
    ("gt", "le"): "a number above {gt:g}, up to {le:g}",
    ("ge",): "a number, at least {ge:g}",
    ("gt",): "a number above {gt:g}",
    ("le",): "a number, at most {le:g}",
    ("lt",): "a number below {lt:g}",
}


@dataclass(frozen=True)
class Option:
    """One option of one or more methods.

    default: its value where none is given; None if the option is off then. True or False makes it a switch.
    meaning: a few words for the help.
    limits: the range of a number, by the keywords ge (≥), gt (>), le (≤), lt (<), as in pydantic's `Field`.
    """

    default: float | bool | None
    meaning: str
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def type(self) -> Kind:
        """bool of a switch, else float."""
        return bool if isinstance(self.default, bool) else float

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        if self.type is bool:
            return "True or False"
        return RANGES[tuple(sorted(self.limits))].format(**self.limits)

    def allows(self, value: Any) -> bool:
        """Whether a value is of the type and in the range; None is allowed where it is the default."""
        if value is None:
            return self.default is None
        if self.type is bool:
            return isinstance(value, bool | np.bool_)
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            return False
        holds = {"ge": float.__ge__, "gt": float.__gt__, "le": float.__le__, "lt": float.__lt__}
        return all(holds[name](float(value), float(limit)) for name, limit in self.limits.items())


OPTIONS = {
    "eta": Option(0.0, "share of DDPM's noise in every step: 0 none, 1 all of it", {"ge": 0, "le": 1}),
    "clip": Option(False, "clip the predicted image to [−1, 1] at every step"),
    "threshold": Option(
        None,
        "dynamic thresholding: the quantile of |x̂₀| to clip the predicted image to, e.g. 0.995",
        {"gt": 0, "lt": 1},
    ),
    "rtol": Option(1e-5, "relative tolerance of the step-size control", {"gt": 0, "lt": 1}),
    "atol": Option(1e-5, "absolute tolerance of the step-size control", {"gt": 0}),
}


def check_option(name: str, value: Any) -> None:
    """Raise ValueError unless the option's value is of its type and in its range."""
    if not OPTIONS[name].allows(value):
        raise ValueError(f"{name} is {value!r}, it must be {OPTIONS[name].allowed}")
