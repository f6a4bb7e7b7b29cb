"""YAML files and overrides become a validated `Experiment`, or one line that says what is wrong and where.

    load("digits.yml", {"Sample.batch_size": ("--batch_size", "64")})

An override is "Section.key" → (the flag or file that it comes from, value).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from pndm.config.errors import InputError, first_line
from pndm.config.keys import Contradiction, at_home, nearest, resembling
from pndm.config.networks import MODELS, ModelSection
from pndm.config.schema import Experiment
from pndm.config.solver import Solver
from pndm.config.table import Table

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "published.yml"  # no experiment


def load(name: str | Path, overrides: Mapping[str, tuple[str | None, Any]] | None = None) -> Experiment:
    """The experiment in file `name`, a path or a file of config/, with `overrides`.

    overrides: "Section.key" → (the flag or file that it comes from, value); None: it follows from another flag.
    Returns an `Experiment`. Raises InputError that begins with the file or the flag that is wrong.

        >>> from pndm import load_experiment
        >>> experiment = load_experiment("digits.yml", {"Sample.total_num": ("--total_num", 10)})
        >>> experiment.Dataset.image_size, experiment.Sample.total_num
        (8, 10)
    """
    path = find(name, "config", FOLDER)
    tree = read(path, f"an experiment is a mapping of sections {', '.join(Experiment.model_fields)}")
    return validate(tree, path, overrides)


def validate(tree, path, overrides=None):
    """An `Experiment` from a dict of sections; `path` is its place in messages. Raises InputError as `load` does."""
    tree, places = dict(tree), {}
    for target, (place, value) in (overrides or {}).items():
        section, _, name = target.partition(".")
        if section not in Experiment.model_fields:
            raise InputError(f"{place}: no section {section!r}{nearest(section, Experiment.model_fields)}")
        if not isinstance(held := tree.get(section) or {}, dict):
            raise InputError(f"{path}: {section} is {held!r}; a section is a mapping of keys")
        tree[section] = {**held, name: value}
        if place:
            places[target] = place
    try:
        return checked(Experiment.model_validate, tree)
    except InputError as error:
        raise InputError(f"{place_of(error.keys, places, path)}: {error}") from None


def words_of(overrides, **flags):
    """The words of a command line that sets overrides, as `load` takes them, and other flags; None leaves one out."""
    words = []
    for target, (flag, value) in overrides.items():
        if flag is None:  # another flag sets it
            continue
        if flag == "--set":
            words += [flag, f"{target}={json.dumps(value, ensure_ascii=False)}"]
        elif value is True:
            words.append(flag)
        elif value is not None:
            words += [flag, str(value)]
    for name, value in flags.items():
        if value is not None:
            words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return words


def place_of(keys, places, path):
    """The flag in `places` ("Section.key" → flag) that set one of `keys`, else the file `path`."""
    return next((places[key] for key in keys if key in places), path)


def replaced(experiment, **values):
    """`experiment` with other values of Sample keys. Raises InputError."""
    tree = experiment.model_dump()
    tree["Sample"] |= values
    return checked(Experiment.model_validate, tree)


def model_section(config):
    """A `Model` section given as a dict, validated. Raises InputError."""
    if isinstance(config, tuple(MODELS.values())):
        return config
    if not isinstance(config, Mapping):
        raise InputError(f"a Model section is a mapping of keys, not of type {type(config).__name__}", "Model")
    return checked(TypeAdapter(ModelSection).validate_python, dict(config), "Model")


def load_table(name):
    """Table `name`, a path or a file of config/tables (with or without .yml): its path and a `Table`.

    Raises InputError that names file and key.
    """
    path = find(named(name), "table", FOLDER / "tables")
    tree = read(path, f"a table is a mapping of keys {', '.join(Table.model_fields)}")
    try:
        return path, checked(Table.model_validate, tree)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def load_solver(source):
    """A solver file, a path or a file of config/solvers (with or without .yml), or its mapping: a `Solver`.

    Raises InputError that names file and key.
    """
    path = source
    if not isinstance(source, (dict, str, Path)):
        raise InputError(f"solver is {source!r}, it must be a path, a name, or a mapping", "Sample.solver")
    if not isinstance(source, dict):
        path = find(named(source), "Sample.solver", FOLDER / "solvers")
        source = read(path, f"a solver file is a mapping of keys {', '.join(Solver.model_fields)}")
    try:
        return checked(Solver.model_validate, source)
    except InputError as error:
        where = "solver" if isinstance(path, dict) else path
        raise InputError(f"{where}: {error}", "Sample.solver") from None


def named(name):
    """The name of a YAML file that is given with or without its ending; of a file that is there, as it is given."""
    return name if Path(name).is_file() or Path(name).suffix in (".yml", ".yaml") else f"{name}.yml"


def find(name, argument, folder=FOLDER):
    """The path of YAML file `name`: as given, or in `folder`. Raises InputError that names the files there."""
    name = at_home(name)
    for path in (Path(name), folder / name, FOLDER.parent / name):
        if path.is_file():
            return path
    known = [path.name for path in files(folder)]
    where = folder.relative_to(FOLDER.parent)
    meant = resembling(Path(name).stem, [path.stem for path in files(folder)]).replace("?", ".yml?")
    raise InputError(f"no file {name}, here or in {where}/, which has {', '.join(known)}{meant}", argument)


def files(folder=FOLDER):
    """The YAML files of `folder` but the manifest of published files: their paths."""
    return sorted(path for path in folder.glob("*.yml") if path != MANIFEST)


def read(path, what):
    """The mapping in a YAML file. Raises InputError; `what` says what it should hold."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not YAML: byte {error.start} is not UTF-8 text") from None
    tree = parse(text, path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: {what}")
    return tree


def parse(text, place):
    """The value of a YAML text. Raises InputError that begins with `place`, and the line where YAML says it."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise InputError(f"{place}: not YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"{place}{where}: not YAML: {reason}") from None
    except (ValueError, TypeError, AttributeError, OverflowError):  # a date that is none, a tag that does not fit, …
        raise InputError(f"{place}: not YAML: a value is not of the type that it looks like") from None


def parse_set(text):
    """Split "Section.key=value" into ("Section.key", value), the value read as YAML. Raises InputError."""
    target, equals, value = text.partition("=")
    if not equals or "." not in target or not all(target.strip().split(".")):
        raise InputError(f"{shortened(text)} is not of the form Section.key=value", "set")
    return target.strip(), parse(value, f"--set {shortened(text)}")


def shortened(text):
    """A text for a message, cut where it is long."""
    return text if len(text) <= 60 else f"{text[:60]}…"


def checked(validate, tree, *place):
    """validate(tree), one of pydantic's functions; `place` is where the tree stands in its file.

    Raises InputError: what is wrong first, in one line, with the "Section.key"s that it is about.
    """
    try:
        return validate(tree)
    except ValidationError as failed:
        errors = failed.errors()
        error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    loc = _path((*place, *error["loc"]))
    name, keys, value = ".".join(loc), [".".join(loc[:2])], error.get("input")
    cause = error.get("ctx", {}).get("error")
    match error["type"]:
        case "extra_forbidden":
            name = name or ".".join(map(str, error["loc"]))
            message = f"unknown section {name}{nearest(name, Experiment.model_fields)}"
        case "missing":
            message = f"{name} is missing"
        case "union_tag_not_found" | "union_tag_invalid":
            found = f"is {value['struc']!r}" if "struc" in value else "is missing"
            message, keys = f"Model.struc {found}; it is one of {', '.join(MODELS)}", ["Model.struc"]
        case "value_error" if isinstance(cause, Contradiction):
            message, keys = str(cause), cause.keys
            if name and "." not in keys[0]:  # of one section
                message = message.replace(keys[0], f"{name}.{keys[0]}", 1)
                keys = [f"{name}.{key}" for key in keys]
        case _:
            same = [other for other in errors if _path((*place, *other["loc"])) == loc]  # of a union, each of its types
            reasons = [str(other.get("ctx", {}).get("error") or other["msg"]) for other in same]
            reason = ", or ".join(reason[:1].lower() + reason[1:] for reason in dict.fromkeys(reasons))
            message = f"{name} is {shortened(repr(value))}; {reason}"
    raise InputError(message, *keys)


def _path(loc):
    """Where an error of pydantic stands, without the names of the types that it tried."""
    parts = [str(part) for part in loc if part != "int" and "[" not in str(part)]
    parts = [part for part in parts if not part.startswith("constrained-")]
    return [part for i, part in enumerate(parts) if parts[i - 1 : i] != ["Model"] or part not in MODELS]


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently drop the first, and what no value can be."""

    def __init__(self, stream):
        super().__init__(stream)
        self.deep_construct = True  # refuses a list or mapping that holds itself

    def construct_integer(self, node):
        value = self.construct_yaml_int(node)
        str(value)  # raises ValueError for more than 4,300 digits, as decimal ones do; no message could show them
        return value

    def construct_text(self, node):
        value = self.construct_yaml_str(node)
        if "\0" in value:
            raise yaml.constructor.ConstructorError(None, None, "a text has a NUL character", node.start_mark)
        return value

    def construct_mapping(self, node, deep=False):
        seen = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", name.start_mark)
            if name.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name.value!r} stands twice", name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
