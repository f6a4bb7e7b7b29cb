"""Cells become rows: means over the seeds; and lines of cells.csv."""

import csv
import json
import statistics
from dataclasses import dataclass
from operator import itemgetter, methodcaller

from pndm.config.files import aside
from pndm.runner.measure.measurement import name_of


@dataclass(frozen=True)
class Row:
    """The cells that differ in their seed alone.

    budget: the steps, or network calls, that the table asks for; None of an adaptive method. steps: as run; None of an
    adaptive method. nfe, distance, seconds: means over the seeds; seconds: of all images by one process. deviation:
    standard deviation of the distance over the seeds; None with one seed. error: the distance's standard error over the
    images of its first seed. batch: images a network call. called: the distance's name; None where none was measured.
    by_seed: seed → distance.
    """

    label: str
    profile: str
    budget: int | None
    steps: int | None
    nfe: float
    seeds: int
    images: int
    distance: float | None
    deviation: float | None
    error: float | None
    seconds: float
    batch: int
    called: str | None
    by_seed: dict

    @property
    def seconds_per_step(self):
        """Seconds of one step of 512 images, the paper's batch; features and files are included."""
        made = -(-self.images // self.batch) * self.batch  # whole batches
        return self.seconds / self.steps / made * 512

    def over(self, seeds):
        """The mean distance over those of its seeds that are in `seeds`; over all of its own where none is."""
        return statistics.fmean([self.by_seed[seed] for seed in seeds if seed in self.by_seed] or self.by_seed.values())

    @property
    def spread(self):
        """What stands behind ±: the deviation over the seeds, with one seed the error."""
        return self.error if self.deviation is None else self.deviation


def summary(done):
    """`Cell.row` → `Row`, in the order of the cells. done: pairs of a cell and its record."""
    rows = {}
    for key in dict.fromkeys(cell.row for cell, _ in done):
        label, profile, budget = key
        records = [record for cell, record in done if cell.row == key]
        cards = {record["seed"]: record["frechet"] for record in records if record["frechet"]}
        by_seed = {seed: card["value"] for seed, card in cards.items()}
        values, first = list(by_seed.values()), next(iter(cards.values()), None)
        rows[key] = Row(
            label=label,
            profile=profile,
            budget=budget.asked if budget else None,
            steps=records[0]["steps"],
            nfe=statistics.fmean(record["nfe"] for record in records),
            seeds=len(records),
            images=records[0]["images"],
            distance=statistics.fmean(values) if values else None,
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            error=first["error"] if first else None,
            seconds=statistics.fmean(map(seconds_of, records)),
            batch=records[0]["config"]["Sample"]["batch_size"],
            called=name_of(first) if first else None,
            by_seed=by_seed,
        )
    return rows


def seconds_of(record):
    """Seconds that one process takes for all of a run's batches; several may have made them, or only the rest."""
    batch = record["config"]["Sample"]["batch_size"]
    whole = -(-record["images"] // batch) * batch  # `made` counts whole batches, too
    return record["seconds"] * record.get("world_size", 1) * whole / record.get("made", whole)


def best(rows):
    """Budget → the row of the least distance over the seeds that all have, among the rows of the first profile."""
    measured = [row for row in rows if row.budget and row.distance is not None and row.profile == rows[0].profile]
    found = {}
    for budget in dict.fromkeys(row.budget for row in measured):
        column = [row for row in measured if row.budget == budget]
        shared = set(column[0].by_seed).intersection(*(row.by_seed for row in column))
        found[budget] = min(column, key=methodcaller("over", shared))
    return found


def nearest(flow):
    """Budget → the entry of the least distance to the exact flow."""
    budgets = dict.fromkeys(entry["budget"] for entry in flow)
    return {n: min((entry for entry in flow if entry["budget"] == n), key=itemgetter("rms")) for n in budgets}


def tidy(cell, record, row):
    """A line of cells.csv: the numbers that people compare, then all of the record. Nested keys are joined by dots."""
    frechet = record["frechet"] or {}
    first = {
        "label": cell.label,
        "method": record["method"],
        "profile": record["profile"],
        "budget": row.budget,
        "steps": record["steps"],
        "nfe": record["nfe"],
        "seed": record["seed"],
        "images": record["images"],
        "distance": frechet.get("value"),
        "error": frechet.get("error"),
        "seeds": row.seeds,
        "mean_over_seeds": row.distance,
        "deviation_over_seeds": row.deviation,
        "least_over_seeds": min(row.by_seed.values(), default=None),
        "seconds": record["seconds"],
        "images_per_second": record["images_per_second"],
    }
    rest = {name: value for name, value in record.items() if name != "fingerprint"}  # which repeats the configuration
    return first | {name: value for name, value in _flat(rest) if name not in first}


def _flat(tree, prefix=""):
    """(key, value) of a nested dict; lists as JSON."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value) if isinstance(value, list) else value


def save_csv(path, lines):
    """Write dicts as a CSV file; a key that some of them lack is left empty there."""
    columns = dict.fromkeys(name for line in lines for name in line)
    with aside(path) as file, open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(lines)
