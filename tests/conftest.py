"""The fixtures of all tests; what else they share is in `helpers`."""

import os

# Before PyTorch is imported, and for every process that the tests start: training is the same to the bit only with
# the same number of threads, and the small networks here gain nothing from more.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test loads anything from outside; those of loading unset it

import hypothesis
import pytest
import torch
from helpers import Tiny

from pndm import cli as front_door

# What CI says of a commit does not depend on the day; elsewhere every run tries other examples.
hypothesis.settings.register_profile("ci", derandomize=True)
if "CI" in os.environ:
    hypothesis.settings.load_profile("ci")


# Tests that one worker of pytest-xdist runs one after another, the longest group first. Those of "processes" start
# several ranks each, which would take the cores from each other. The others share what their module makes once.
GROUPS = {
    "test_processes.py": "processes",
    "test_train.py": "train",
    "test_sample.py": "sample",
    "test_run.py": "table",
    "test_bundled_solvers.py": "solvers",
    "test_search.py": "search",
}
ORDER = {group: i for i, group in enumerate(GROUPS.values())}
# Beside every test that starts a process: what `make test-quick` leaves out. These files run before the quick ones, so
# that no worker is left with a long test at the end.
SLOW = {"test_train.py", "test_run.py", "test_processes.py", "test_fid.py", "test_bundled.py", "test_benchmark.py"}
SLOW |= {"test_example.py", "test_package.py", "test_commands.py", "test_live.py", "test_bundled_solvers.py"}
SLOW |= {"test_edm_runs.py", "test_advice.py", "test_scheduler_settings.py", "test_formats.py", "test_cells.py"}
SLOW |= {"test_search.py", "test_fetch.py", "test_export.py"}
STARTS = {"torchrun", "ranks", "places"}  # what starts several ranks


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    groups = {}
    for item in items:
        names, file = item.function.__code__.co_names, item.path.name
        if group := "processes" if STARTS & set(names) else GROUPS.get(file):
            groups[item] = ORDER[group]
            item.add_marker(pytest.mark.xdist_group(group))
        if file in SLOW or (STARTS | {"process", "subprocess"}) & set(names):
            item.add_marker("slow")
    items.sort(key=lambda item: (groups.get(item, len(GROUPS)), item.path.name not in SLOW))


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


def pytest_runtest_setup():
    """What a test draws without a seed of its own is the same in every run: hypothesis alone looks for new examples."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cli(capsys):
    """Run the command line in this process: cli(flag, ...) → (exit status, stdout, stderr)."""

    def run(*flags):
        capsys.readouterr()
        try:
            status = front_door.main([str(flag) for flag in flags])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run
