"""The bundled solver files: of the bundled network, of the calls in their names, and better than what is built in."""

import functools
import re

import pytest
import torch
from helpers import ROOT

from pndm.config.load import load, load_solver
from pndm.model import checkpoint
from pndm.runner.build import load_network, schedule_of
from pndm.runner.processes import Processes
from pndm.runner.search.problem import Problem, better
from pndm.runner.search.rank import candidates

# Noises, by experiment. On the digits a few, where the flow turns to another image, make most of the distance; a call
# of the clothes' network takes ten times as long.
NOISES = {"digits": 256, "fashion": 64}
STEPS = 40  # of the exact flow: twice as many change a mean error by less than a tenth
FILES = sorted((ROOT / "config" / "solvers").glob("*.yml"))


def network_of(path):
    """The experiment of a file, from its name."""
    return path.stem.partition("_")[0]


@functools.cache
@torch.inference_mode()
def problem_of(name):
    """A bundled network as a problem, and noises that no file was searched on."""
    experiment, device = load(f"{name}.yml"), torch.device("cpu")
    network, size = load_network(experiment, device, "fp32").network, experiment.Dataset.image_size
    problem = Problem(network, schedule_of(experiment), (1, size, size), 1, Processes(device), 64)
    problem.steps = STEPS
    return problem, problem.noises(NOISES[name])


def rival_of(solver, schedule):
    """The best built-in method of the search's record."""
    best = solver.found["best_built_in"].partition(",")[0]
    (rival,) = (other for other in candidates(schedule, solver.calls, best.split()[:1]) if other.label == best)
    return rival


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_of_the_bundled_network_and_its_calls(path):
    solver = load_solver(path.stem)
    assert solver.calls == int(re.search(r"nfe(\d+)", path.stem)[1])
    assert solver.network == checkpoint.sha256(ROOT / "model" / f"{network_of(path)}.safetensors")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@torch.inference_mode()
def test_a_file_is_better_than_the_best_method_built_in(path):
    problem, noises = problem_of(network_of(path))
    solver = load_solver(path.stem)
    errors = problem.errors(solver.line, solver.times, noises)
    other = rival_of(solver, problem.schedule)
    assert better(errors, other.measured(problem, noises).errors), other.label
