"""The options of the methods. Each is declared once, here; checks, experiment keys and flags follow from `OPTIONS`."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RANGES: dict[tuple[str, ...], str] = {
    ("ge", "le"): "a number from {ge:g} to {le:g}",
    ("gt", "lt"): "a number between {gt:g} and {lt:g}, both excluded",
}
WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
HOLDS = {"ge": float.__ge__, "gt": float.__gt__, "le": float.__le__, "lt": float.__lt__}


@dataclass(frozen=True)
class Option:
    """One option of one or more methods.

    default: its value where none is given; None if the option is off then. True or False makes it a switch.
    meaning: a few words for the help.
    limits: the range of a number, by the keywords ge (≥), gt (>), le (≤), lt (<), as in pydantic's `Field`.

        >>> from pndm import Option
        >>> share = Option(0.0, "a share", {"ge": 0, "le": 1})
        >>> share.allowed, share.allows(2)
        ('a number from 0 to 1', False)
    """

    default: float | bool | None
    meaning: str
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def type(self) -> Any:
        """bool of a switch, else float."""
        return bool if isinstance(self.default, bool) else float

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        if self.type is bool:
            return "True or False"
        said = " and ".join(f"{WORDS[name]} {limit:g}" for name, limit in self.limits.items())
        return RANGES.get(tuple(sorted(self.limits)), f"a number {said}".strip()).format(**self.limits)

    def allows(self, value: Any) -> bool:
        """Whether a value is of the type and in the range; None is allowed where it is the default."""
        if value is None:
            return self.default is None
        if self.type is bool:
            return isinstance(value, bool | np.bool_)
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            return False
        return all(HOLDS[name](float(value), float(limit)) for name, limit in self.limits.items())


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
"""The options of all methods: name → `Option`. A method names those that it takes in `Method.options`.

    >>> from pndm import METHODS, OPTIONS
    >>> sorted(METHODS["PF"].options), OPTIONS["rtol"].default
    (['atol', 'rtol'], 1e-05)
"""

# Options of the grid, which every method takes that does not choose its own steps: arguments of `grid.grid_of`.
GRID_OPTIONS = {
    "sigma_min": Option(None, "spacing karras, logsnr: the least noise level σ = √(1/ᾱ − 1)", {"gt": 0}),
    "sigma_max": Option(None, "spacing karras, logsnr: the greatest noise level σ", {"gt": 0}),
    "noisy_end": Option(False, "end at the last time of the spacing, without a step into clean data"),
}
