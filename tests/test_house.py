"""The house: which room may import which, one name for every module, and files and functions of a readable size."""

import ast
import re
from graphlib import CycleError, TopologicalSorter

import pytest
from helpers import ROOT

RUN = ["runner/build.py", "runner/folder.py", "runner/random.py", "runner/progress.py"]  # one room
# The rooms from the bottom floor to the top. A room imports itself and rooms of lower floors, nothing else.
FLOORS = [
    ["runner/solver"],
    ["config"],
    ["model", "dataset", "runner/processes.py"],
    ["runner/servers.py"],
    ["runner/fetch.py"],
    ["runner/measure"],
    RUN,
    ["runner"],  # the runners: its other files
    ["runner/table", "runner/search"],
    ["runner/demo"],
    ["pndm"],
    ["tools", "main.py"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PRODUCT = ["config", "model", "dataset", "runner", "pndm", "tools"]
FILES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in [ROOT / "main.py", *sorted(path for room in PRODUCT for path in (ROOT / room).rglob("*.py"))]
}
TESTS = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "tests").rglob("*.py"))
}
LINES, FUNCTION_LINES = 350, 60


def room(file):
    """The room of a file: the longest name in FLOOR that it starts with."""
    return max((name for name in FLOOR if f"{file}/".startswith(f"{name}/")), key=len)


def file_of(module):
    """The file of a module `pndm.…`, or None."""
    path = module.removeprefix("pndm").strip(".").replace(".", "/")
    places = [f"pndm/{path}.py", f"{path}.py", f"{path}/__init__.py"] if path else ["pndm/__init__.py"]
    return next((place for place in places if place in FILES), None)


def imports(tree):
    """(line, module) of every import in a file, those inside functions and of types too; relative ones with dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def inside(file):
    """(line, file) of every import of the house in a product file."""
    for line, module in imports(FILES[file]):
        if module.split(".")[0] == "pndm":
            # `from pndm.model import load_model` names no module: then it is its package's file.
            yield line, file_of(module) or file_of(module.rpartition(".")[0])


def test_no_room_imports_a_room_above_or_beside_it():
    wrong = [
        f"{file}:{line} imports {other}"
        for file in FILES
        for line, other in inside(file)
        if FLOOR[room(other)] > FLOOR[room(file)]
        or (FLOOR[room(other)] == FLOOR[room(file)] and len({room(other), room(file)} - set(RUN)) > 1)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle():
    graph = {file: {other for _, other in inside(file)} for file in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" ← ".join(error.args[1]))


def test_every_import_of_the_house_begins_with_pndm():
    own = {"config", "model", "dataset", "runner", "main"}
    wrong = [
        f"{file}:{line} imports {module}"
        for file, tree in (FILES | TESTS).items()
        for line, module in imports(tree)
        if module.split(".")[0] in own or module.startswith(".")
    ]
    assert not wrong, "\n".join(wrong)


def test_imported_modules_of_the_house_exist():
    wrong = [f"{file}:{line}" for file in FILES for line, other in inside(file) if other is None]
    assert not wrong, "\n".join(wrong)


def test_the_solver_imports_nothing_of_the_house_and_only_numbers():
    allowed = {"abc", "bisect", "collections", "dataclasses", "functools", "inspect", "itertools", "math", "typing"}
    allowed |= {"numpy", "scipy", "torch", "__future__", "enum", "numbers", "operator", "types"}
    wrong = [
        f"{file}:{line} imports {module}"
        for file, tree in FILES.items()
        if file.startswith("runner/solver/")
        for line, module in imports(tree)
        if module.split(".")[0] not in allowed and not module.startswith("pndm.runner.solver")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_too_long():
    long = [f"{file}: {n} lines" for file in FILES if (n := len((ROOT / file).read_text().splitlines())) > LINES]
    assert not long, "\n".join(long)


def test_no_function_is_too_long():
    long = [
        f"{file}:{node.lineno} {node.name}: {n} lines"
        for file, tree in FILES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (n := node.end_lineno - node.lineno + 1) > FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_no_file_changes_the_import_path():
    edit = re.compile(r"sys\.path(\.(insert|append|extend)|\[.*\] *=| *\+?=[^=])")
    wrong = [file for file in FILES | TESTS if edit.search((ROOT / file).read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


def private(name):
    return name.startswith("_") and not name.endswith("__")


def test_tests_share_helpers_alone_and_use_no_private_names():
    wrong = []
    for file, tree in TESTS.items():
        for line, module in imports(tree):
            top = module.split(".")[0]
            if top.startswith(("test_", "tests")) or (top == "pndm" and any(map(private, module.split(".")))):
                wrong.append(f"{file}:{line} imports {module}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr) and not ast.unparse(node).startswith("torch._"):
                wrong.append(f"{file}:{node.lineno} uses {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)
