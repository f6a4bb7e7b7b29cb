"""What a table is made of: cells. Each cell is one sampling run, by one method, number of steps, profile and seed."""

import re
from dataclasses import dataclass, replace
from itertools import product

from pndm.config.errors import InputError
from pndm.config.load import find, load, replaced
from pndm.config.schema import Experiment
from pndm.runner import plan
from pndm.runner.build import adaptive

KEEP = 16  # images of a cell that stay as files
ADAPTIVE = 200  # network calls an image, assumed of an adaptive method that has not run yet
# Keys of Sample that the table sets from its own keys, so that no method may.
OF_THE_TABLE = ("profile", "seed", "sample_speed", "nfe", "times", "total_num")


@dataclass(frozen=True)
class Budget:
    """What a method may spend on an image.

    unit: "steps" or "network calls". asked: the number in the table. calls: the network calls that the method makes.
    Of a method that cannot make exactly `asked` calls they are fewer.
    """

    unit: str
    asked: int
    calls: int


@dataclass(frozen=True)
class Cell:
    """One sampling run of a table. budget: None of an adaptive method, which chooses its steps itself."""

    label: str
    profile: str
    seed: int
    budget: Budget | None
    experiment: Experiment

    @property
    def row(self):
        """Cells with equal rows differ in their seed alone."""
        return self.label, self.profile, self.budget

    @property
    def name(self):
        """The name of the cell's folder."""
        name = file_name(self.label)
        if self.budget:
            name += f"_{self.budget.asked}" if self.budget.unit == "steps" else f"_nfe{self.budget.calls}"
        return f"{name}_{self.profile}_seed{self.seed}"

    @property
    def asked(self):
        """The number that the table asks for; None of an adaptive method."""
        return self.budget.asked if self.budget else None

    @property
    def work(self):
        """Images × network calls. Batches are run whole."""
        return plan.work(self.experiment, self.budget.calls if self.budget else ADAPTIVE)


def file_name(label):
    """A label as part of a file's name."""
    return re.sub(r"[^\w.=+-]+", "-", label).strip("-")


def cells_of(table, path, overrides):
    """The cells of a `Table` from the file `path`.

    A method that cannot make the number of calls that the table asks for takes the most below it, if that is at least
    half. Of two numbers that come to the same calls the smaller counts. What a profile or a method cannot run is left
    out. overrides: as `load` takes them; they go over every cell.
    Returns (cells, what was left out: reason → names). Raises InputError.
    """
    found, left_out, least = {}, {}, {}
    methods = methods_of(table, path, overrides)
    for group in (table, *table.more):
        for profile, (label, experiment) in product(group.profiles, methods.items()):
            asked = [("sample_speed", n) for n in group.steps] + [("nfe", n) for n in group.nfe]
            for key, number in [(None, None)] if adaptive(experiment) else asked:
                try:
                    given = replaced(experiment, profile=profile, **({key: number} if key else {}))
                except InputError as error:
                    raise InputError(f"{path}: {label}: {error}") from None
                try:
                    given = by_file(given, key, number)
                    if key == "nfe":
                        calls = plan.most_calls(replaced(given, nfe=None), number)
                        given = replaced(given, nfe=calls)
                    else:
                        calls = plan.count_calls(given)
                except ValueError as error:
                    left_out.setdefault(str(error), []).append(f"{label} {number or ''}".strip())
                    continue
                budget = Budget("network calls" if key == "nfe" else "steps", number, calls) if key else None
                if key == "nfe":
                    least[label, profile, calls] = min(number, least.get((label, profile, calls), number))
                for seed in range(group.seeds):
                    cell = Cell(label, profile, seed, budget, replaced(given, seed=seed))
                    held = found.setdefault(cell.name, cell)
                    if held.label != label:
                        raise InputError(f"{path}: cells of {held.label} and {label} would share folders; rename one")
    if not found:
        raise InputError(f"{path}: there is nothing to run ({'; '.join(left_out) or 'no steps are given'})")
    cells = [_of_the_least(cell, least) for cell in found.values()]
    _check_alike(cells, path)
    return cells, left_out


def _of_the_least(cell, least):
    """The cell with the least number that was asked for its calls, in any group: one row for all seeds of them."""
    budget = cell.budget
    asked = budget and least.get((cell.label, cell.profile, budget.calls))
    return replace(cell, budget=replace(budget, asked=asked)) if asked else cell


def _check_alike(cells, path):
    """Raise InputError where the distances of cells cannot be compared: other features, or other reference images."""
    keys = "Sample.features", "Dataset.dataset", "Dataset.category", "Dataset.split", "Sample.statistics"
    for key in keys:
        section, name = key.split(".")
        values = [getattr(getattr(cell.experiment, section), name) for cell in cells]
        for cell, value in zip(cells, values, strict=True):
            if value != values[0]:
                found = f"{values[0]!r} in {cells[0].label} and {value!r} in {cell.label}"
                raise InputError(f"{path}: {key} is {found}; the distances of a table are of one kind")


def by_file(experiment, key, number):
    """`experiment` with {nfe} in the name of its solver file replaced. Raises ValueError if it does not fit."""
    if not (name := experiment.Sample.solver):
        return experiment
    if key != "nfe":
        raise ValueError(f"solver file {name} is of a number of network calls, not of steps")
    return replaced(experiment, solver=name.replace("{nfe}", str(number)), nfe=None)


def methods_of(table, path, overrides):
    """Label → `Experiment` of each entry of the table's `methods`. Raises InputError."""
    for name in ("method", "solver", "profile", "seed", "sample_speed", "nfe", "times"):
        if f"Sample.{name}" in overrides:
            raise InputError(f"a table sets Sample.{name} itself", f"Sample.{name}")
    found, files = {}, {}
    for entry in table.methods:
        values = {"method": entry} if isinstance(entry, str) else dict(entry)
        network = str(values.pop("experiment", table.experiment))
        label = values.pop("label", values.get("method", ""))
        _check(label, values, table, path)
        if label in found:
            raise InputError(f"{path}: two methods are called {label}; give one another `label`")
        other = files.setdefault(file_name(label), label)
        if other != label:
            raise InputError(f"{path}: {other} and {label} would share folders; give one another `label`")
        found[label] = _experiment(label, network, values, table, path, overrides)
    return found


def _check(label, values, table, path):
    """Raise InputError where a label or a key of a method will not do."""
    if not label:
        raise InputError(f"{path}: methods: an entry has neither `method` nor `label`")
    if not isinstance(label, str):
        raise InputError(f"{path}: label {label!r}: it must be a text")
    if label[0] == "_" or not {"|", "$", "\\", ","}.isdisjoint(label) or not label.isprintable():
        raise InputError(f"{path}: label {label!r}: it must be printable, without , | $ \\, and not begin with _")
    if not all(isinstance(name, str) for name in values):
        raise InputError(f"{path}: {label}: a key of Sample must be a name")
    for name in OF_THE_TABLE:
        if name in values or name in table.sample:
            raise InputError(f"{path}: {label}: {name} is not a key of a method; the table has a key of its own for it")


def _experiment(label, network, values, table, path, overrides):
    """The experiment of one method: the file `network`, the keys of the table over it, then those of the method."""
    try:
        file = find(network, "table")
    except InputError as error:
        raise InputError(f"{path}: experiment: {error}") from None
    own = {"total_num": table.images, "keep": KEEP} | table.sample | values | {"nfe": None, "times": None}
    for name in values:
        if f"Sample.{name}" in overrides:
            raise InputError(f"{label} of table {path} sets Sample.{name} itself", f"Sample.{name}")
    laid = {f"Sample.{name}": (f"{path}: {label}", value) for name, value in own.items()}
    experiment = load(file, laid | overrides)
    if experiment.Sample.batch_size == "auto":
        raise InputError(f"{path}: {label}: batch_size auto does not go with a table; give a number")
    return experiment


def select(cells, table, methods=None, steps=None, seeds=None):
    """The cells that `methods`, `steps` (or calls) and `seeds` leave; None: all. Raises InputError.

    table: its name, for messages. methods, steps: words with commas between them. seeds: how many, as text.
    """
    most = max(cell.seed for cell in cells) + 1
    if seeds and seeds not in map(str, range(1, most + 1)):
        raise InputError(f"{seeds!r} is not a number from 1 to {most}, as table {table} has", "seeds")
    labels = dict.fromkeys(cell.label for cell in cells)
    numbers = sorted({cell.asked for cell in cells if cell.budget})
    if methods:
        wanted = _words(methods, labels, table, "methods")
        cells = [cell for cell in cells if cell.label in wanted]
    if steps:
        wanted, able = _words(steps, numbers, table, "steps"), sorted({cell.asked for cell in cells if cell.budget})
        cells = [cell for cell in cells if cell.budget is None or str(cell.asked) in wanted]
        if not cells:
            raise InputError(f"{methods} has no {steps} in table {table}; it has {', '.join(map(str, able))}", "steps")
    if seeds:
        cells = [cell for cell in cells if cell.seed < int(seeds)]
    return cells


def _words(text, known, table, argument):
    """The words of `text`, which are all `known`. Raises InputError about `argument`."""
    known = [str(value) for value in known]
    given = [part.strip() for part in text.split(",")]
    for part in given:
        if part not in known:
            raise InputError(f"{part!r} is not in table {table}: {', '.join(known)}", argument)
    return given
