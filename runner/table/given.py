"""Cells that another folder has finished: read from its cells.csv, taken in place of being run.

python main.py --runner reproduce --table fashion --cells docs/results-fashion/cells.csv
"""

import ast
import csv
import math
from pathlib import Path

from pndm.config.errors import InputError
from pndm.config.schema import difference

OF_A_CELL = ("label", "profile", "budget", "seed", "nfe")  # columns that tell a cell from all others
NUMBERS = ("nfe", "images", "made", "seconds", "images_per_second", "world_size")  # that every cell has
ROUNDING = ("Sample.compile",)  # what changes images no more than another processor does
# Columns that are the table's, not the record's.
OF_THE_TABLE = {"label", "budget", "distance", "error", "seeds"}
OF_THE_TABLE |= {f"{what}_over_seeds" for what in ("mean", "deviation", "least")}


def read(path, cells):
    """The records in a cells.csv of the `cells` that it holds: cell's name → record, without its fingerprint.

    Raises InputError where there are none.
    """
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe would wait for ever
        raise InputError(f"{path}: not a regular file", "cells")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file, strict=True))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "cells") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a cells.csv ({error})", "cells") from None
    for column in OF_A_CELL:
        if lines and column not in lines[0]:
            raise InputError(f"{path}: no column {column}; not a cells.csv, or of an older version", "cells")
    names = {}
    for cell in cells:  # by their calls, since a table by steps and one by calls ask for different numbers
        calls = str(cell.budget.calls) if cell.budget else ""
        names[cell.label, cell.profile, str(cell.seed), calls] = cell.name
    found = {}
    for number, line in enumerate(lines, 2):
        if None in line or None in line.values():
            raise InputError(f"{path}, line {number}: not as long as the first line", "cells")
        calls = line["nfe"] if line["budget"] else ""
        if name := names.get((line["label"], line["profile"], line["seed"], calls)):
            found[name] = {key: value for key, value in _record(line).items() if key not in OF_THE_TABLE}
    if not found:
        raise InputError(f"{path}: none of the table's cells is in it", "cells")
    return found


def fit(record, fingerprint, measurement, place):
    """The `record` of a cell with the `fingerprint` that it has here. Raises InputError where it is another run's.

    measurement: what the cell's distance is measured with here, None if nothing is. place: what messages begin with.
    """
    try:
        numbers = [record[key] for key in NUMBERS] + ([record["frechet"]["value"]] if record["frechet"] else [])
        if not all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers):
            raise TypeError
        if not all(record[key] for key in NUMBERS):  # 0
            raise TypeError
        held = {key: _at(record["config"], key) for key in fingerprint if "." in key and key not in ROUNDING}
        held |= {key: record[key] for key in ("steps", "precision")} | {"checkpoint": record["checkpoint"]["sha256"]}
        if record["solver"]:
            held["solver"] = record["solver"]["sha256"]
        found = difference({key: value for key, value in held.items() if value is not ...}, fingerprint)
        if not found and measurement and record["frechet"] and not measurement.fits(record["frechet"]):
            found = "its reference has changed since"
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{place}: damaged, or of another version", "cells") from None
    if found:
        raise InputError(f"{place} is another run ({found})", "cells")
    return record | {"fingerprint": fingerprint}


def _at(config, key):
    """The value of "Section.key", `...` where there is none."""
    section, name = key.split(".")
    return config.get(section, {}).get(name, ...)


def _record(line):
    """A line of cells.csv as a record: numbers are numbers, "frechet.value" stands in "frechet"."""
    record = {"options": {}}
    for name, text in line.items():
        *parents, leaf = name.split(".")
        node = record
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        if not isinstance(node.get(leaf), dict):
            node[leaf] = _value(name, text)
    record["options"] = {name: value for name, value in record["options"].items() if value is not None}
    return record | {name: record.get(name) if _holds(record.get(name)) else None for name in ("frechet", "solver")}


def _holds(value):
    """Whether there is a value anywhere in nested dicts."""
    return any(map(_holds, value.values())) if isinstance(value, dict) else value is not None


def _value(name, text):
    """What `results.tidy` wrote as `text`."""
    if name.startswith("versions.") or name.endswith(("sha256", "hash")):
        return text or None
    try:
        return ast.literal_eval(text) if text else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
