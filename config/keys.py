"""What keys are made of: types with their ranges, what a key decides, and `Section`, which knows its keys."""

import difflib
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WrapValidator,
    model_validator,
)

DECIDES = {
    "images": "what the images of a sampling run are",
    "distance": "what distance is measured of them",
    "network": "which network is loaded, and how it runs",
    "training": "what network a training run ends with",
}


class Contradiction(ValueError):
    """Values that exclude each other. keys: "Section.key" of each, the most likely mistake first."""

    def __init__(self, message, *keys):
        super().__init__(message)
        self.keys = keys


def resembling(name, known):
    """ "; did you mean …?" with the name in `known` that a wrong name resembles; "" where none does."""
    close = difflib.get_close_matches(str(name), list(known), 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""


def nearest(name, known):
    """The end of a message about an unknown name: the known name that it resembles, or all known names."""
    return resembling(name, known) or f"; known are {', '.join(known)}"


def _not_a_bool(value):
    if isinstance(value, bool):
        raise ValueError("it must be a number, not yes or no")
    return value


def one_of(known):
    """A check that a value is a name in `known`, a table that may grow while the program runs."""

    def check(name):
        if name not in known:
            raise ValueError(f"it must be one of {', '.join(known)}{resembling(name, known)}")
        return name

    return AfterValidator(check)


def _auto_or_number(value, number):
    return value if value == "auto" else number(value)


def whole(least, most):
    return Annotated[int, BeforeValidator(_not_a_bool), Field(ge=least, le=most)]


def real(**limits):
    return Annotated[float, BeforeValidator(_not_a_bool), Field(allow_inf_nan=False, **limits)]


def _split(value):
    return value.split(",") if isinstance(value, str) else value


Positive = whole(1, 10**9)
Side = whole(1, 2**13)  # pixels
Channels = whole(1, 2**14)
Widths = Annotated[list[whole(1, 64)], Field(min_length=1, max_length=12)]
Blocks = whole(1, 64)
Seed = whole(0, 2**63 - 1)
Rate = real(ge=0, lt=1)
Text = Annotated[str, Field(min_length=1)]
Times = Annotated[list[real()], BeforeValidator(_split)]
Metrics = Annotated[list[Literal["kid", "prdc"]], BeforeValidator(_split)]
Batch = Annotated[
    whole(1, 2**16), WrapValidator(_auto_or_number), PlainSerializer(lambda value: value, return_type=int | str)
]


def key(default, meaning, decides="", runners="", metavar=None):
    """A key with a default. runners: those that have it as a flag, whose value is called `metavar` in the help."""
    extra = {"decides": decides.split(), "runners": runners.split(), "metavar": metavar}
    return Field(default, description=meaning, json_schema_extra=extra)


def needed(meaning, decides=""):
    """A key without a default."""
    return key(..., meaning, decides)


class Section(BaseModel):
    """One section of an experiment.

    Released files have more keys than matter here. `ignored`: keys that no result depends on, kept as they are.
    `fixed`: keys with the only value that is possible here.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
    ignored: ClassVar[frozenset] = frozenset()
    fixed: ClassVar[dict] = {}

    @model_validator(mode="after")
    def _known(self):
        for name, value in (self.model_extra or {}).items():
            if name in self.fixed:
                if value != self.fixed[name]:
                    raise Contradiction(f"{name} is {value!r}; only {self.fixed[name]!r} is possible here", name)
            elif name not in self.ignored:
                known = [*type(self).model_fields, *self.fixed, *self.ignored]
                raise Contradiction(f"unknown key {name}{nearest(name, known)}", name)
        return self
