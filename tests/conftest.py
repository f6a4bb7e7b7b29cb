"""The fixtures of all tests; what else they share is in `helpers`."""

import os

# Before PyTorch is imported, and for every process that the tests start: training is the same to the bit only with
# the same number of threads, and the small networks here gain nothing from more.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
from helpers import Tiny

from pndm import cli as front_door

# What CI says of a commit does not depend on the day; elsewhere every run tries other examples.
hypothesis.settings.register_profile("ci", derandomize=True)
if "CI" in os.environ:
    hypothesis.settings.load_profile("ci")


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
