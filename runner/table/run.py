"""The paper's tables: methods × steps × profiles × seeds, every cell a sampling run of its own.

    python main.py --runner reproduce --table digits --total_num 500 --seeds 1 --steps 5,10,20,50
    torchrun --nproc_per_node=8 main.py --runner reproduce --table cifar10_linear

A table is a file of config/tables. Each cell has a folder in the table's `cells/`, with the record of its sampling run;
a cell that has its record is not run again. Under torchrun the processes take cells from one list, and each cell is run
by one process. Then the first process writes the results of all finished cells: `cells.csv`, `cells.json`, `table.md`,
`figures/`, and `report.html`, which holds them all.
"""

import shlex
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from pndm.config.errors import InputError
from pndm.config.files import alone, aside, load_json, save_json
from pndm.config.load import FOLDER, replaced, words_of
from pndm.config.schema import difference, fingerprint
from pndm.runner import needs, plan, sample
from pndm.runner.build import check_solver, load_network, network_key, sampling_of, schedule_of
from pndm.runner.folder import GRID, held_identity
from pndm.runner.processes import Processes, processes
from pndm.runner.progress import Progress
from pndm.runner.solver.schedule import Schedule
from pndm.runner.table import figures, given, report, results, tables
from pndm.runner.table import flow as convergence
from pndm.runner.table.cells import cells_of, select
from pndm.runner.table.pictures import read_cells


def run(table, path, overrides, device, folder, timeout=None, flow=None, taken=None, **narrow):
    """Run the cells of a `Table` (from the file `path`) that are missing in `folder`; write the results of all cells.

    flow: number of images whose distance to the exact flow is measured; None: the table's. taken: a cells.csv, whose
    cells are taken as they are. narrow: the `methods`, `steps` and `seeds` to run, as `select` takes them. Returns the
    failures, one line each: a cell whose images are not finite fails, and the others go on. Raises InputError before
    any cell is run.
    """
    folder = Path(folder)
    cells, left_out = cells_of(table, path, overrides)
    selected = select(cells, path.stem, **narrow)
    records = given.read(taken, cells) if taken else {}
    if cells[0].experiment.Sample.total_num < 2:
        raise InputError("a distance needs at least 2 images", "Sample.total_num")
    needs.require(cell.experiment for cell in cells)  # all of them, before one is read
    with processes(device, timeout) as team, ExitStack() as stack:
        bench = Bench(team, cells, folder)
        bench.finished(cells)  # refuses another table's folder before anything is written
        for cell in cells:
            if cell.name in records:
                bench.take(cell, records[cell.name], taken)
        if team.first:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(folder, "image_path"))
        team.wait()
        names = {cell.name for cell, _ in bench.finished(cells)}
        team.wait()  # until all have seen the same
        chosen = {cell.name for cell in selected} | bench.taken.keys()
        wanted = [cell for cell in cells if cell.name in chosen]
        missing = [cell for cell in wanted if cell.name not in names]
        missing.sort(key=bench.work, reverse=team.size > 1)  # the longest first, so that none is left last
        if team.first:
            for reason, labels in left_out.items():
                print(f"left out, {', '.join(labels)}: {reason}", file=sys.stderr)
            from_file = f", {len(records.keys() - names):,} from {taken}" if taken else ""
            print(f"{folder}: {len(wanted):,} cells, {len(wanted) - len(missing):,} of them finished{from_file}")
        failures = bench.run_all(missing)
        if team.first:
            done = bench.finished(cells)
            narrow = narrow if {cell.name for cell, _ in done} <= chosen else {}  # else there were other commands, too
            made_by = command(path, overrides, flow, narrow | {"cells": taken})
            write(table, path.stem, done, bench, table.flow if flow is None else flow, made_by)
    return failures


def command(path, overrides, flow, narrow):
    """The command that makes the table, without what changes no number."""
    bundled = path.parent == FOLDER / "tables"
    words = ["python", "main.py", "--runner", "reproduce", "--table", path.stem if bundled else str(path)]
    return shlex.join(words + words_of(overrides, **narrow, flow=flow))


def show_plan(table, path, overrides, device, taken=None, **narrow):
    """Print what a table, or the part of it that `narrow` and the cells.csv `taken` leave, takes."""
    cells, left_out = cells_of(table, path, overrides)
    records = given.read(taken, cells) if taken else {}
    cells = [cell for cell in select(cells, path.stem, **narrow) if cell.name not in records]
    meter, calls = plan.Meter(device), {}
    wide = 2 + max((len(cell.label) for cell in cells), default=0)
    print(f"{'cells':>5}  {'method':<{wide}}{'profile':<11}{'steps':>6}{'calls':>8}{'images':>9}")
    for row, count in Counter(cell.row for cell in cells).items():
        cell = next(cell for cell in cells if cell.row == row)
        calls[row] = cell.budget.calls if cell.budget else meter.calls(cell.experiment)
        steps, images = sampling_of(cell.experiment).steps or "", cell.experiment.Sample.total_num
        print(f"{count:5}  {cell.label:<{wide}}{cell.profile:<11}{steps:>6}{calls[row] or '?':>8}{images:9,}")
    for reason, names in left_out.items():
        print(f"left out, {', '.join(names)}: {reason}")
    if records:
        print(f"taken from {taken}: {len(records):,}; of these only the images that are kept are made again")
    plan.print_totals([(cell.experiment, calls[cell.row]) for cell in cells], meter)


class Bench:
    """What the cells of a table share: the processes, the folder, and each network and reference, loaded once.

    Raises InputError where a network or reference is missing.
    """

    def __init__(self, team, cells, folder):
        self.team, self.single, self.folder = team, Processes(team.device), folder
        self.networks, self.measurements, self.identities, self.taken = {}, {}, {}, {}
        for cell in cells:
            if (key := network_key(cell.experiment, team.device)) not in self.networks:
                self.networks[key] = load_network(cell.experiment, team.device)
            check_solver(cell.experiment, self.networks[key].record["sha256"])
            if (key := _measurement_key(cell)) not in self.measurements:
                self.measurements[key] = sample.measurement_of(cell.experiment, team)

    def path(self, cell):
        """The folder of a cell."""
        return self.folder / "cells" / cell.name

    def loaded(self, cell):
        """The cell's network, as `load_network` returns it."""
        return self.networks[network_key(cell.experiment, self.team.device)]

    def sampler(self, cell, watch=lambda n: None):
        """A `Sampler` of the cell by this process alone. `watch` is told the number of images of every call."""
        loaded = self.loaded(cell)
        return sample.Sampler(cell.experiment, self.single, replace(loaded, network=Watched(loaded.network, watch)))

    def finished(self, cells):
        """(cell, record) of the cells that have their record. Raises InputError if the folder is another table's."""
        return [(cell, record) for cell in cells if (record := self.record(cell))]

    def record(self, cell):
        """The record of a cell, None if there is none yet. Raises InputError if the folder is another table's."""
        file = self.path(cell) / "result.json"
        identity, whole = self.identity(cell)
        record = _read(file) if file.exists() else None
        if record:
            held, mine = record["fingerprint"], whole
        else:
            held, mine = held_identity(self.path(cell)) or identity, identity
        if found := difference(held, mine):
            raise InputError(f"{self.folder} holds another table ({found}); choose another folder", "image_path")
        measurement = self.measurements[_measurement_key(cell)]
        if record and record["frechet"] and measurement and not measurement.fits(record["frechet"]):
            message = (
                f"the distances in {self.folder} are from a reference that has changed since; choose another folder"
            )
            raise InputError(message, "image_path")
        return record

    def identity(self, cell):
        """What the cell's images depend on, and what these and their distance depend on."""
        if cell.name not in self.identities:
            sampler = self.sampler(cell)
            self.identities[cell.name] = sampler.identity, sampler.fingerprint
        return self.identities[cell.name]

    def take(self, cell, record, file):
        """Have a cell's `record` of a cells.csv, the `file`, taken in place of being run. Raises InputError."""
        measurement = self.measurements[_measurement_key(cell)]
        self.taken[cell.name] = given.fit(record, self.identity(cell)[1], measurement, f"{file}: {cell.name}")

    def run_all(self, cells):
        """Run this process's share of the cells; returns the failures, one line each."""
        if not cells:
            return []
        total = sum(self.work(cell) for cell in cells)
        started, failures = self.team.counter("started"), []
        with Progress(self.team, total, " image×calls", "table") as progress:
            for cell in self.team.deal(cells):
                try:
                    self.run(cell, progress, f"cell {started(1)} of {len(cells)}, {cell.name}")
                except InputError as error:
                    failures.append(f"{cell.name}: {error}")
            self.team.wait(progress.add)  # the others' work is shown, too
        return failures

    def work(self, cell):
        """Images × network calls that the cell still takes. Batches are run whole."""
        return self.first_images(cell).work if cell.name in self.taken else cell.work

    def first_images(self, cell):
        """The cell with no more images than it keeps."""
        count = max(1, sample.kept(cell.experiment.Sample))
        return replace(cell, experiment=replaced(cell.experiment, total_num=count))

    def run(self, cell, progress, title):
        """Run one cell; of a taken one make the images that it keeps. Raises InputError where they are not finite."""
        counted, expected = 0, self.work(cell)

        def watch(n):
            nonlocal counted, expected
            if not counted:  # what was there takes no calls
                left = round(expected * (1 - sampler.there / sampler.experiment.Sample.total_num))
                progress.expect(left - expected)
                expected = left
            counted += n
            self.team.beat()
            progress.add(n, title)

        sample.Sampler(cell.experiment, self.single, self.loaded(cell)).prepare()
        sampler = self.sampler(self.first_images(cell) if cell.name in self.taken else cell, watch)
        if cell.name in self.taken:
            with sample.make(sampler, self.path(cell)) as target:
                target.save_grid(min(sample.kept(cell.experiment.Sample), GRID))
                target.finish(self.taken[cell.name])
        else:
            measurement = self.measurements[_measurement_key(cell)]
            if measurement:
                measurement.reset()
            sample.complete(sampler, self.path(cell), measurement)
        progress.expect(counted - expected)  # of an adaptive method the calls are known only now


class Watched:
    """A network that tells `watch` the number of images of every call."""

    def __init__(self, network, watch):
        self.network, self.watch = network, watch
        self.broadcasts_time = getattr(network, "broadcasts_time", False)

    def __call__(self, x, t, *labels):
        self.watch(len(x))
        return self.network(x, t, *labels)


def _read(file):
    """The record in a cell's result.json. Raises InputError where it lacks what tables are made of."""
    try:
        record = load_json(file)
        results.seconds_of(record), sample.told(record), record["seed"], record["profile"]
        if record["frechet"]:
            record["frechet"]["hash"], record["frechet"]["error"]
        if isinstance(record["fingerprint"], dict):
            return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        pass
    raise InputError(f"{file}: damaged, or of another version; delete it and run again")


def _measurement_key(cell):
    """Cache key: cells with equal keys can share a measurement."""
    return repr(fingerprint(cell.experiment, "distance")), cell.experiment.Sample.inception_path


def write(table, name, done, bench, flow_images, made_by):
    """Write the results of `done`, pairs of a cell and its record, into the table's folder; print the table.

    made_by: the command.
    """
    if not done:
        return
    folder, summary = bench.folder, results.summary(done)
    rows = list(summary.values())
    save_json(folder / "cells.json", [{"cell": cell.name, "label": cell.label, "record": r} for cell, r in done])
    results.save_csv(folder / "cells.csv", [results.tidy(cell, record, summary[cell.row]) for cell, record in done])
    flow = convergence.flow_distances([cell for cell, _ in done], bench, flow_images)
    paragraphs, made = tables.explanation(table, rows, flow), tables.tables_of(table, rows, flow)
    text = report.markdown(name, paragraphs, made)
    print(f"\n{text}")
    drawn = figures.draw(rows, flow, _analytic(done), read_cells(done, bench), table.by_calls)
    saved = figures.save(drawn, folder / "figures")
    _save_text(folder / "table.md", text + report.pictures(saved))
    title = f"{name}, {len(done)} sampling runs"
    _save_text(folder / "report.html", report.page(title, paragraphs, made, saved, _facts(made_by, done)))
    print(f"{folder}: report.html, table.md, cells.csv, cells.json, figures/")


def _analytic(done):
    """(steps, method → errors) on a network in closed form, of the methods that stand in the table by their name."""
    found = [cell.experiment for cell, _ in done if convergence.has_flow(cell)]
    names = dict.fromkeys(e.Sample.method for e in found if not sampling_of(e).options)
    if not names:
        return convergence.STEPS, {}
    schedule = schedule_of(done[0][0].experiment)
    if schedule.diffusion_step != 1000:
        schedule = Schedule()
    return convergence.STEPS, convergence.analytic(schedule, names)


def _facts(made_by, done):
    """What the numbers were made by. Where the cells differ, all values are listed."""

    def all_of(function):
        return ", ".join(dict.fromkeys(str(function(record)) for _, record in done))

    def reference(record):
        held = (record["frechet"] or {}).get("reference", {})
        return held.get("file") or held.get("dataset") or "none"

    return {
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": made_by,
        "images a cell": all_of(lambda r: f"{r['images']:,}"),
        "seeds": all_of(lambda r: r["seed"]),
        "reference": all_of(reference),
        "checkpoint": all_of(lambda r: f"{r['checkpoint']['path']} (sha256 {r['checkpoint']['sha256'][:12]}…)"),
        "precision": all_of(lambda r: r["precision"]),
        "device": all_of(lambda r: r["device"]),
        "versions": all_of(lambda r: ", ".join(f"{name} {version}" for name, version in r["versions"].items())),
        "seconds in all": f"{sum(results.seconds_of(r) for _, r in done):,.0f}",
    }


def _save_text(path, text):
    with aside(path) as file:
        file.write_text(text, encoding="utf-8")
