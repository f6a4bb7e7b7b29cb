"""What keys are made of: types with their ranges, what a key decides, and `Section`, which knows its keys."""

import difflib
import json
import os
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class Contradiction(ValueError):
    """Values that exclude each other. keys: "Section.key" of each, the most likely mistake first."""

    def __init__(self, message, *keys):
        super().__init__(message)
        self.keys = keys


def resembling(name, known):
    """ "; did you mean …?" with the name in `known` that a wrong name resembles; "" where none does."""
    lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(str(name).lower(), list(lower), 1, 0.5)
    return f"; did you mean {lower[close[0]]}?" if close else ""


def nearest(name, known):
    """The end of a message about an unknown name: the known name that it resembles, or all known names."""
    return resembling(name, known) or f"; known are {', '.join(known)}"


def at_home(value):
    """A path with a leading ~ for the user's home, where the shell has left it so; all else as it is."""
    return os.path.expanduser(value) if isinstance(value, (str, os.PathLike)) else value


def _split(value):
    return value.split(",") if isinstance(value, str) else value


# Ranges, as `key` takes them.
POSITIVE = {"ge": 1, "le": 10**9}
SIDE = {"ge": 1, "le": 2**13}  # pixels
STEPS = {"ge": 1, "le": 10**5}
CALLS = {"ge": 1, "le": 10**6}
CHANNELS = {"ge": 1, "le": 2**14}
BLOCKS = {"ge": 1, "le": 64}
SEED = {"ge": 0, "lt": 2**63}
RATE = {"ge": 0, "lt": 1}
TEXT = {"min_length": 1}

Width = Annotated[int, Field(ge=1, le=64)]
Widths = Annotated[list[Width], Field(min_length=1, max_length=12)]
Place = Annotated[str, Field(min_length=1), BeforeValidator(at_home)]  # a path, or a name
Side = Annotated[int, Field(**SIDE)]
Count = Annotated[int, Field(ge=1, le=2**16)]
Times = Annotated[list[float], BeforeValidator(_split)]
Metrics = Annotated[list[Literal["kid", "prdc"]], BeforeValidator(_split)]


def key(default, meaning, decides="", runners="", metavar=None, among=None, **limits) -> Any:
    """A key with a default.

    decides: of a sampling run its "images", the "distance" that is measured of them, the "network" that is loaded and
    how it runs; "training": the network that a training run ends with. runners: those that have the key as a flag; the
    help calls its value `metavar`. among: a table of the names that are allowed; it may grow while the program runs.
    limits: those of pydantic's Field.
    """
    extra = {"decides": decides.split(), "runners": runners.split(), "metavar": metavar, "among": among}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def needed(meaning, decides="", **limits) -> Any:
    """A key without a default."""
    return key(..., meaning, decides, **limits)


def _holds_bool(value):
    return isinstance(value, bool) or (isinstance(value, list) and any(map(_holds_bool, value)))


def _of_numbers(annotation):
    """Whether a type has numbers in it, and not yes and no."""
    leaves, left = [], [annotation]
    while left:
        parts = get_args(part := left.pop())
        left += parts
        leaves += [] if parts else [part]
    return bool not in leaves and any(leaf in (int, float) or isinstance(leaf, int) for leaf in leaves)


class Section(BaseModel):
    """One section of an experiment.

    Released files have more keys than matter here. `ignored`: keys that no result depends on, kept as they are.
    `fixed`: keys with the only value that is possible here.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=(), allow_inf_nan=False)
    ignored: ClassVar[frozenset] = frozenset()
    fixed: ClassVar[dict] = {}

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, data):
        for name, item in cls.model_fields.items():
            value = data.get(name) if isinstance(data, dict) else None
            if _holds_bool(value) and _of_numbers(item.annotation):
                raise Contradiction(f"{name} is {value}; it must be a number, not yes or no", name)
        return data

    @field_validator("*")
    @classmethod
    def _names(cls, value, info):
        known = (cls.model_fields[info.field_name].json_schema_extra or {}).get("among")
        if known is not None and value is not None and value not in known:
            raise ValueError(f"it must be one of {', '.join(known)}{resembling(value, known)}")
        return value

    @model_validator(mode="after")
    def _known(self):
        for name, value in (self.model_extra or {}).items():
            try:
                json.dumps(value)  # as the record of a run keeps it
            except (TypeError, ValueError, RecursionError):
                raise Contradiction(f"{name} is no text, number, list or mapping of these", name) from None
            if name in self.fixed:
                if value != self.fixed[name]:
                    raise Contradiction(f"{name} is {value!r}; only {self.fixed[name]!r} is possible here", name)
            elif name not in self.ignored:
                known = [*type(self).model_fields, *self.fixed, *self.ignored]
                raise Contradiction(f"unknown key {name}{nearest(name, known)}", name)
        return self
