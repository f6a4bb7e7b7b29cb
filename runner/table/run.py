"""The paper's tables: methods × steps × profiles × seeds, every cell a sampling run of its own.

    python main.py --runner reproduce --table digits --total_num 500 --seeds 1 --steps 5,10,20,50
    torchrun --nproc_per_node=8 main.py --runner reproduce --table cifar10_linear

A table is a file of config/tables. Each cell has a folder below `cells/` in the table's folder, with the record that
`--runner sample` leaves; a cell that has its record is not run again. Under torchrun the cells are dealt to the
processes, each run by one alone. The results of all finished cells are then written: `cells.csv`, `cells.json`,
`table.md`, `figures/`, and `report.html`, which holds them all.
"""

import json
import math
import re
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from tqdm import tqdm

from pndm.config.errors import InputError
from pndm.config.files import aside, load_json, save_json
from pndm.config.load import find, load, replaced
from pndm.config.schema import Experiment, difference, fingerprint
from pndm.runner import plan, sample
from pndm.runner.build import checkpoint_path, load_network, network_key, read_network, sampling_of, schedule_of
from pndm.runner.folder import held_identity
from pndm.runner.processes import Processes, processes
from pndm.runner.solver.events import NotFinite
from pndm.runner.solver.schedule import Schedule
from pndm.runner.table import figures, report, results
from pndm.runner.table import flow as convergence

KEEP = 16  # images of a cell left as files, for the grids
ADAPTIVE = 200  # network calls an image assumed of an adaptive method that has not run yet


@dataclass(frozen=True)
class Cell:
    """One entry of a table: a sampling run. steps or nfe is None; both are of an adaptive method.

    nfe is the number of network calls that the table asks for; `calls` may be fewer, where the method cannot spend it.
    """

    label: str
    steps: int | None
    nfe: int | None
    profile: str
    seed: int
    network: str  # the experiment file that names it
    experiment: Experiment
    calls: int | None = None  # network calls an image; None until an adaptive method has run

    @property
    def row(self):
        """What cells that differ in nothing but the seed share."""
        return self.label, self.profile, self.steps, self.nfe

    @property
    def name(self):
        budget = [str(self.steps)] if self.steps else [f"nfe{self.calls}"] if self.nfe else []
        return "_".join([_file_name(self.label), *budget, self.profile, f"seed{self.seed}"])

    @property
    def work(self):
        """Images × network calls, batches being run whole."""
        return plan.work(self.experiment, self.calls or ADAPTIVE)


def _replaced(experiment, place, **values):
    """`experiment` with other values of Sample keys. Raises InputError that begins with `place`."""
    try:
        return replaced(experiment, **values)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _file_name(label):
    return re.sub(r"[^\w.=+-]+", "-", label).strip("-")


def cells_of(table, path, overrides):
    """The cells of a `Table` from the file `path`, without those that their profile or method cannot run.

    A number of network calls that a method cannot spend stands for the most below it that it can, half of it at least;
    where several numbers stand for the same, the cell is that of the least. overrides: as `load` takes them, laid over
    every cell. Returns (cells, what was left out: reason → names). Raises InputError.
    """
    cells, left_out = {}, {}
    methods = _methods(table, path, overrides)
    for group in (table, *table.more):
        budgets = [{"sample_speed": n} for n in group.steps] + [{"nfe": n} for n in group.nfe]
        for profile, (label, network, experiment) in product(group.profiles, methods):
            for budget in [{}] if plan.adaptive(experiment) else budgets:
                given = _replaced(experiment, f"{path}: {label}", profile=profile, **budget)
                steps, nfe = budget.get("sample_speed"), budget.get("nfe")
                try:
                    calls = plan.most_calls(_replaced(given, path, nfe=None), nfe) if nfe else plan.count_calls(given)
                except ValueError as error:
                    left_out.setdefault(str(error), []).append(f"{label} {steps or nfe or ''}".strip())
                    continue
                for seed in range(group.seeds):
                    seeded = _replaced(given, path, seed=seed, nfe=nfe and calls)
                    cell = Cell(label, steps, nfe, profile, seed, network, seeded, calls)
                    held = cells.setdefault(cell.name, cell)
                    if held.label != label:
                        raise InputError(f"{path}: cells of {held.label} and {label} would share folders; rename one")
                    if nfe and nfe < held.nfe:  # the budget that is spent whole
                        cells[cell.name] = cell
    if not cells:
        raise InputError(f"{path}: there is nothing to run ({'; '.join(left_out) or 'no steps are given'})")
    return list(cells.values()), left_out


# Keys of Sample that a cell has from the table's own: images, profiles, seeds, steps or nfe.
_OF_THE_TABLE = {"total_num", "profile", "seed", "sample_speed", "nfe", "times"}


def _methods(table, path, overrides):
    """(label, experiment file, its `Experiment`) of each entry of `methods`."""
    found, labels = {}, {}
    for name in (_OF_THE_TABLE | {"method"}) - {"total_num"}:
        if f"Sample.{name}" in overrides:
            raise InputError(f"{overrides[f'Sample.{name}'][0]} Sample.{name}: a table says that itself")
    for entry in table.methods:
        values = {"method": entry} if isinstance(entry, str) else dict(entry)
        label = str(values.pop("label", values.get("method")))
        network = str(values.pop("experiment", table.experiment))
        if not label or label[0] == "_" or not {"|", "$", "\\"}.isdisjoint(label) or not label.isprintable():
            raise InputError(f"{path}: label {label!r}: it is printable, without | $ \\, and does not begin with _")
        for name in _OF_THE_TABLE & (values | table.sample).keys():
            raise InputError(f"{path}: {label}: {name} is not a method's; the table has it from its own keys")
        if not all(isinstance(name, str) for name in values):
            raise InputError(f"{path}: {label}: keys of Sample are words")
        other = labels.setdefault(_file_name(label), label)
        if label in found:
            raise InputError(f"{path}: two methods are called {label}; give one another `label`")
        if label != other:
            raise InputError(f"{path}: {other} and {label} would share folders; give one another `label`")
        common = {"total_num": table.images, "keep": KEEP} | table.sample | values
        common |= {"nfe": None, "times": None}
        laid = {f"Sample.{name}": (f"{path}: {label}", value) for name, value in common.items()}
        experiment = load(_found(network, path), laid | overrides)
        if experiment.Sample.batch_size == "auto":
            raise InputError(f"{path}: {label}: batch_size auto is for --runner sample; a table's cells need a number")
        found[label] = (label, network, experiment)
    return list(found.values())


def _found(name, path):
    try:
        return find(name, "table")
    except InputError as error:
        raise InputError(f"{path}: experiment: {error}") from None


def select(cells, path, methods=None, steps=None, seeds=None):
    """The cells that `--methods`, `--steps`, `--seeds` (text, or None) leave. Raises InputError."""
    labels = dict.fromkeys(cell.label for cell in cells)
    budgets = sorted({cell.steps or cell.nfe for cell in cells} - {None})
    most = max(cell.seed for cell in cells) + 1

    def among(flag, text, known):
        given = [part.strip() for part in text.split(",")]
        for part in given:
            if part not in map(str, known):
                raise InputError(f"{part!r} is not in table {path.stem}: {', '.join(map(str, known))}", flag)
        return set(given)

    if methods:
        wanted = among("methods", methods, labels)
        cells = [cell for cell in cells if cell.label in wanted]
    if steps:
        wanted = among("steps", steps, budgets)
        cells = [cell for cell in cells if str(cell.steps or cell.nfe) in wanted | {"None"}]
    if seeds:
        if not (seeds.isascii() and seeds.isdecimal() and 1 <= int(seeds) <= most):
            raise InputError(f"{seeds!r} is not a number from 1 to {most}, as table {path.stem} has", "seeds")
        cells = [cell for cell in cells if cell.seed < int(seeds)]
    return cells


def run(table, path, overrides, device, folder, timeout=None, flow=None, **narrow):
    """Run what is missing of a `Table` (from file `path`) in `folder` and write the results of all that is there.

    flow: images whose distance to the exact flow is measured, by default the table's. narrow: the `methods`, `steps`,
    `seeds` to run, texts as of the flags. Returns the list of failures, one line each: a cell whose images are not
    finite fails, and the others go on. Raises InputError before any cell is run.
    """
    folder = Path(folder)
    cells, left_out = cells_of(table, path, overrides)
    selected = select(cells, path, **narrow)
    if cells[0].experiment.Sample.total_num < 2:
        raise InputError("a distance needs at least 2 images", "Sample.total_num")
    with processes(device, timeout) as team:
        bench = Bench(team, cells, folder)
        records = {cell.name: record for cell in cells if (record := bench.held(cell))}
        team.wait()  # until all have seen the same
        missing = [cell for cell in selected if cell.name not in records]
        missing.sort(key=lambda cell: cell.work, reverse=team.size > 1)  # the longest first, so that none is left last
        if team.first:
            for reason, names in left_out.items():
                print(f"left out, {', '.join(names)}: {reason}", file=sys.stderr)
            print(f"{folder}: {len(selected):,} cells, {len(selected) - len(missing):,} of them finished")
        with Progress(team, missing) as progress:
            failures = [line for cell in team.deal(missing) if (line := bench.run(cell, progress))]
        if team.first:
            done = [(cell, record) for cell in cells if (record := bench.held(cell))]
            write(table, path, done, bench, table.flow if flow is None else flow)
    return failures


def show_plan(table, path, overrides, device, **narrow):
    """Print what a table, or the part of it that `narrow` leaves, takes."""
    cells, left_out = cells_of(table, path, overrides)
    cells = select(cells, path, **narrow)
    meter, calls = plan.Meter(device), {}
    wide = 2 + max(len(cell.label) for cell in cells)
    print(f"{'cells':>5}  {'method':<{wide}}{'profile':<11}{'steps':>6}{'calls':>8}{'images':>9}")
    for row, count in Counter(cell.row for cell in cells).items():
        cell = next(cell for cell in cells if cell.row == row)
        calls[row] = cell.calls or meter.calls(cell.experiment)
        steps, images = sampling_of(cell.experiment).steps or "", cell.experiment.Sample.total_num
        print(f"{count:5}  {cell.label:<{wide}}{cell.profile:<11}{steps:>6}{calls[row] or '?':>8}{images:9,}")
    for reason, names in left_out.items():
        print(f"left out, {', '.join(names)}: {reason}")
    plan.print_totals([(cell.experiment, calls[cell.row]) for cell in cells], meter)


class Bench:
    """The networks and references of a table's cells, each loaded once, and the folder with what is finished."""

    def __init__(self, team, cells, folder):
        self.team, self.alone, self.folder = team, Processes(team.device), folder
        self.networks, self.measurements = {}, {}
        for cell in cells:
            checkpoint_path(cell.experiment.Sample.model_path)  # all of them, before one is read
        for cell in cells:
            if (key := network_key(cell.experiment, team.device)) not in self.networks:
                self.networks[key] = load_network(cell.experiment, team.device)
            if (key := _measurement_key(cell)) not in self.measurements:
                self.measurements[key] = sample.measurement_of(cell.experiment, team)

    def path(self, cell):
        return self.folder / "cells" / cell.name

    def held(self, cell):
        """The record of `cell`, None if there is none yet. Raises InputError if the folder is another table's."""
        file, sampler = self.path(cell) / "result.json", self.sampler(cell)
        try:
            record = load_json(file)
            record["frechet"], record["seconds"], record["images"]  # which the tables are made of
            held, mine = dict(record["fingerprint"]), sampler.fingerprint
        except FileNotFoundError:
            record, mine = None, sampler.identity
            held = held_identity(self.path(cell)) or mine
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file}: damaged, or of another version; delete it and run again") from None
        if found := difference(held, mine):
            raise InputError(f"{self.folder} holds another table ({found})", "image_path")
        return record

    def loaded(self, cell):
        return self.networks[network_key(cell.experiment, self.team.device)]

    def sha256(self, cell):
        return self.loaded(cell).record["sha256"]

    def sampler(self, cell, watch=lambda n: None):
        """A `Sampler` of the cell alone; `watch` is told the images of every network call."""
        loaded = self.loaded(cell)
        return sample.Sampler(cell.experiment, self.alone, replace(loaded, network=Watched(loaded.network, watch)))

    def run(self, cell, progress):
        """Run one cell; returns None, or one line if it failed."""
        measurement = self.measurements[_measurement_key(cell)]
        if measurement:
            measurement.reset()
        try:
            with progress.of(cell):
                sample.complete(self.sampler(cell, progress.add), self.path(cell), measurement)
        except InputError as error:
            return f"{cell.name}: {error}"
        return None


class Watched:
    """A network that tells `watch` the number of images of every call."""

    def __init__(self, network, watch):
        self.network, self.watch = network, watch
        self.broadcasts_time = getattr(network, "broadcasts_time", False)

    def __call__(self, x, t):
        self.watch(len(x))
        return self.network(x, t)


def _measurement_key(cell):
    return repr(fingerprint(cell.experiment, "distance")), cell.experiment.Sample.inception_path


class Progress:
    """How much of the work, in images × network calls, all processes together have done; the first shows it."""

    def __init__(self, team, cells):
        self.team, self.cells = team, len(cells)
        self.done, self.expected, self.started = (team.counter(name) for name in ("done", "expected", "started"))
        if team.first:
            self.expected(sum(cell.work for cell in cells))
        self.name, self.mine, self.shown = "", 0, time.monotonic()

    def __enter__(self):
        unit = {"unit": " image×calls", "unit_scale": True}
        self.bar = tqdm(total=1, dynamic_ncols=True, smoothing=0, disable=None if self.team.first else True, **unit)
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.team.wait(self.show)
        self.bar.close()

    @contextmanager
    def of(self, cell):
        """While that cell is run."""
        self.name, self.counted = cell.name, 0
        self.started(1)
        yield
        self.expected(self.counted - cell.work)  # of adaptive methods it is known only now
        self.show()

    def add(self, n):
        """Count a network call on n images."""
        self.team.beat()
        self.mine += n
        self.counted += n
        if time.monotonic() - self.shown > 1:
            self.show()

    def show(self):
        """Tell the others, and whoever watches."""
        done = self.done(self.mine)
        self.mine, self.shown = 0, time.monotonic()
        if not self.bar.disable:
            self.bar.total, self.bar.n = self.expected(0), done
            self.bar.set_description(f"cell {min(self.started(0), self.cells)} of {self.cells}, {self.name}")


def write(table, path, done, bench, flow_images):
    """Write the results of `done`, pairs of a cell and its record, into the table's folder, and print the table."""
    if not done:
        return
    folder, rows = bench.folder, results.summary(done)
    save_json(folder / "cells.json", [{"cell": cell.name, "label": cell.label, "record": r} for cell, r in done])
    results.save_csv(folder / "cells.csv", [results.tidy(cell, record, rows[cell.row]) for cell, record in done])
    flow = flow_distances(done, bench, flow_images)
    text = results.markdown(table, path.stem, list(rows.values()), flow)
    _save_text(folder / "table.md", text)
    print(f"\n{text}")
    schedule = schedule_of(done[0][0].experiment)
    analytic = convergence.STEPS, convergence.analytic(schedule if schedule.diffusion_step == 1000 else Schedule())
    drawn = figures.draw(list(rows.values()), flow, analytic, _images(done, bench))
    saved = figures.save(drawn, folder / "figures")
    title = f"{path.stem}, {len(done)} sampling runs"
    _save_text(folder / "report.html", report.page(title, text, saved, _facts(path, done)))
    print(f"{folder}: report.html, table.md, cells.csv, cells.json, figures/")


def flow_distances(done, bench, images):
    """The distance to the exact flow, for the noise of the first `images`, of each row with a fixed number of steps.

    A list of entries, kept in flow.json and measured once; profile exact, first seed. The flow is integrated to a
    tolerance well below the distances that fall with the number of calls.
    """
    file = bench.folder / "flow.json"
    cells = [cell for cell, _ in done if images and cell.calls and (cell.profile, cell.seed) == ("exact", 0)]
    cells = [cell for cell in cells if not _draws(cell.experiment)]
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        known = {entry["cell"]: entry for entry in kept if entry["images"] == images}
    except (OSError, ValueError, TypeError, KeyError):  # not there yet, or damaged: it is made again
        known = {}
    missing = [cell for cell in cells if known.get(cell.name, {}).get("checkpoint") != bench.sha256(cell)]
    groups = {}
    for cell in missing:
        key = network_key(cell.experiment, bench.team.device), convergence.first_time(cell.experiment)
        groups.setdefault(key, []).append(cell)
    bar = tqdm(groups.items(), desc="exact flow", unit="start", dynamic_ncols=True, disable=None if groups else True)
    for _, group in bar:
        device = bench.team.device
        network = read_network(group[0].experiment)[0].to(device)
        network.register_forward_hook(lambda *_: bench.team.beat())
        tolerance = 1e-4 / max(cell.calls for cell in group)
        try:
            ends = convergence.exact_flow(group[0].experiment, network, device, images, tolerance)
        except NotFinite as error:
            print(f"{group[0].name}: {error}", file=sys.stderr)
            continue
        for cell in group:
            known[cell.name] = {
                "cell": cell.name,
                "label": cell.label,
                "steps": len(plan.lines(cell.experiment)),
                "nfe": cell.calls,
                "rms": convergence.distance_to_flow(cell.experiment, network, device, ends),
                "images": images,
                "tolerance": tolerance,
                "checkpoint": bench.sha256(cell),
            }
        save_json(file, list(known.values()))
    found = [known[cell.name] | {"budget": cell.steps or cell.nfe} for cell in cells if cell.name in known]
    return [entry for entry in found if math.isfinite(entry["rms"])]


def _draws(experiment):
    """Whether noise enters on the way, so that there is no flow to be compared with."""
    return sampling_of(experiment).draws


def _images(done, bench):
    """(label, budget) → the first images of the cells of the first profile and seed."""
    first = done[0][0]
    cells = [cell for cell, _ in done if (cell.profile, cell.seed) == (first.profile, 0)]
    found = {(cell.label, cell.steps or cell.nfe): figures.read_images(bench.path(cell)) for cell in cells}
    return {key: images for key, images in found.items() if images}


def _facts(path, done):
    """What the numbers were made by; what differs among the cells is listed."""

    def all_of(function):
        return ", ".join(dict.fromkeys(str(function(record)) for _, record in done))

    return {
        "table": path.name,
        "images a cell": all_of(lambda r: f"{r['images']:,}"),
        "seeds": all_of(lambda r: r["seed"]),
        "reference": all_of(
            lambda r: (f := r["frechet"]) and f["reference"].get("file", f["reference"].get("dataset"))
        ),
        "checkpoint": all_of(lambda r: f"{r['checkpoint']['path']} (sha256 {r['checkpoint']['sha256'][:12]}…)"),
        "precision": all_of(lambda r: r["precision"]),
        "device": all_of(lambda r: r["device"]),
        "versions": all_of(lambda r: ", ".join(f"{name} {version}" for name, version in r["versions"].items())),
        "seconds in all": f"{sum(r['seconds'] for _, r in done):,.0f}",
    }


def _save_text(path, text):
    with aside(path) as file:
        file.write_text(text, encoding="utf-8")
