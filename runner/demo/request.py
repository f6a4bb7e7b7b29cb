"""What a page asks for: rows (method × spacing), columns (calls), noise. Everything is checked and bounded here."""

from dataclasses import dataclass, field
from itertools import product

from pndm.config.errors import InputError
from pndm.config.keys import nearest
from pndm.config.load import shortened
from pndm.config.solver import SEARCHED
from pndm.runner.solver.grid import SPACINGS
from pndm.runner.solver.methods import METHODS

ROWS, COLUMNS, IMAGES, CALLS = 12, 8, 16, 1000  # the most of each
ADAPTIVE = 500  # calls that an adaptive method may spend
LIMIT = 20_000  # images × calls of a request
SEEDS = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """A method on a spacing; an adaptive method has none. Or SEARCHED, by solver files.

    files: their name, with {nfe} in place of the number of calls.
    """

    method: str
    spacing: str = "uniform"
    files: str | None = None

    def file(self, calls):
        """The solver file of so many calls; None of a method of METHODS."""
        return self.files and self.files.replace("{nfe}", str(calls))

    @property
    def label(self):
        """The row's name on the page."""
        return self.method if self.spacing == "uniform" else f"{self.method}, {self.spacing}"

    @property
    def adaptive(self):
        """Whether the method chooses its own calls."""
        return self.files is None and METHODS[self.method].adaptive


@dataclass(frozen=True)
class Noise:
    """Which noise: image numbers 0 … images−1 of `seed`, turned towards that of seed `other` by `share` (0 … 1)."""

    seed: int = 0
    images: int = 4
    other: int = 1
    share: float = 0.0


@dataclass(frozen=True)
class Request:
    """rows: `Row`s; calls: the columns, network calls an image, rising; noise: a `Noise`."""

    rows: tuple
    calls: tuple
    noise: Noise = field(default_factory=Noise)


def request_of(methods, spacings, calls, seed=0, images=4, other=1, share=0.0, limit=LIMIT, files=None):
    """The `Request` that values from outside ask for. Raises InputError for everything else, in one line.

    methods, spacings: names, as a list or a text with commas. calls: whole numbers, likewise. seed, images, other:
    whole numbers; share: a number from 0 to 1. Numbers may be texts. limit: the most images × calls. files: the solver
    files that the method SEARCHED means, as of a `Row`; they do not come from outside.
    """
    methods = _names("method", listed("methods", methods), methods_with(files))
    spacings = _names("spacing", listed("spacings", spacings), SPACINGS)
    rows = tuple(dict.fromkeys(_row(method, spacing, files) for method, spacing in product(methods, spacings)))
    if len(rows) > ROWS:
        raise InputError(f"{len(rows)} rows (methods × spacings) are asked for; at most {ROWS} are drawn", "methods")
    columns = tuple(sorted({_whole("calls", value, 1, CALLS) for value in listed("calls", calls)}))
    if len(columns) > COLUMNS:
        raise InputError(f"{len(columns)} numbers of calls are asked for; at most {COLUMNS} are drawn", "calls")
    noise = Noise(
        _whole("seed", seed, 0, SEEDS),
        _whole("images", images, 1, IMAGES),
        _whole("second seed", other, 0, SEEDS, "other"),
        _share(share),
    )
    if noise.share and noise.other == noise.seed:
        raise InputError(f"the second seed is {noise.other}, as the first; a mixture needs two", "other")
    cost = noise.images * sum(ADAPTIVE if row.adaptive else sum(columns) for row in rows)
    if cost > limit:
        raise InputError(f"this asks for {cost:,} images × calls; at most {limit:,} are drawn at once", "calls")
    return Request(rows, columns, noise)


def methods_with(files):
    """The names that a row's method may have."""
    return [*METHODS, SEARCHED] if files else list(METHODS)


def _row(method, spacing, files):
    """The `Row` of a method and a spacing that were asked for."""
    if method == SEARCHED:
        return Row(method, files=files)
    return Row(method, "uniform" if METHODS[method].adaptive else spacing)


def listed(what, values):
    """The entries of a list, or of a text with commas. Raises InputError where there is none."""
    if isinstance(values, str):
        values = [part for part in values.replace(" ", ",").split(",") if part]
    if isinstance(values, int):
        values = [values]
    if not isinstance(values, (list, tuple)) or not values:
        raise InputError(f"{what}: none is given", what)
    if len(values) > 100:
        raise InputError(f"{what}: {len(values)} are given, that is too many", what)
    return values


def _names(what, names, known):
    """`names` in their order, each once. Raises InputError for one that is not known."""
    for name in names:
        if not isinstance(name, str) or name not in known:
            close = nearest(name, known) if isinstance(name, str) and len(name) < 60 else ""
            raise InputError(f"no {what} {shortened(repr(name))}{close}", f"{what}s")
    return list(dict.fromkeys(names))


def _whole(what, value, least, most, flag=None):
    """A whole number from `least` to `most`. Raises InputError about `flag`, by default `what`."""
    text = str(value)[:40].strip().removesuffix(".0") if isinstance(value, (int, float, str)) else ""
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
        shown = shortened(repr(value))
        raise InputError(f"{what} is {shown}; it must be a whole number from {least} to {most}", flag or what)
    return int(text)


def _share(value):
    """A number from 0 to 1. Raises InputError."""
    try:
        share = float(value) if isinstance(value, (int, float, str)) else -1.0
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:  # nor NaN
        raise InputError(f"share is {shortened(repr(value))}; it must be a number from 0 to 1", "share")
    return share
