"""Tables of weights: that every method of one call a step is one, and what they ask the network."""

from itertools import product

import pytest
import torch
from helpers import LINEAR, last, made_up, reference_noise

from pndm.runner.solver.events import Step
from pndm.runner.solver.grid import SPACINGS, grid_of
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.run import rest_of, spans
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import drive, network_calls, solve
from pndm.runner.solver.tabulated import Tabulated, tabulate

TABLES = [name for name in METHODS if name.split("-")[0] in ("DDIM", "iPNDM2", "iPNDM3", "iPNDM4", "DEIS", "UniPC3")]
TABLES += ["UniPC2-bh1", "UniPC2-bh2", "DPM-Solver-2M", "DPM-Solver-3M", "DPM-Solver++2M", "DPM-Solver++3M"]


@pytest.mark.parametrize(("method", "spacing"), list(product(TABLES, SPACINGS)))
@pytest.mark.parametrize("schedule", [LINEAR, Schedule("cosine")])
def test_the_table_of_a_method_makes_its_images(method, spacing, schedule):
    grid = grid_of(schedule, 6, spacing)
    line = tabulate(METHODS[method], schedule, grid)
    x = reference_noise()
    of_method, of_table = (last(solve(any_line, made_up, x, schedule, 1, times=grid)) for any_line in (method, line))
    assert of_table.nfe == 6
    assert (of_method.x - of_table.x).abs().max() < 1e-9 * of_method.x.abs().max().clamp(min=1)


@pytest.mark.parametrize("method", ["S-PNDM", "F-PNDM", "FON", "Heun", "DPM-Solver-2S", "DPM-Solver-3S", "DDPM"])
def test_methods_of_more_calls_a_step_or_of_noise_are_no_tables(method):
    with pytest.raises(ValueError, match="one network call a step"):
        tabulate(METHODS[method], LINEAR, grid_of(LINEAR, 6))


def test_the_network_is_told_the_times_of_the_table():
    line = Tabulated(((1.0,), (1.5, -0.5), (1.0, 0.0, 0.0)), (990.0, 500.5, 7.0))
    told = []

    def network(x, t):
        told.extend(t.unique().tolist())
        return x

    state = last(solve(line, network, reference_noise(), LINEAR, 1, times=[999, 400, 20, -1]))
    assert told == [990.0, 500.5, 7.0]
    assert state.nfe == network_calls(line, LINEAR, 1, times=[999, 400, 20, -1]) == 3


def test_a_run_that_begins_inside_gives_unknown_gradients_to_the_oldest_known():
    line = Tabulated(((1.0,), (1.5, -0.5), (2.0, -1.5, 0.5)), (999.0, 400.0, 20.0))
    x, grid = reference_noise(), [999.0, 400.0, 20.0, -1.0]
    left = Tabulated(((1.0,), (2.0, -1.0)), (400.0, 20.0))
    (rest,) = rest_of(spans(line, grid), LINEAR, done=1)
    found = _driven(rest.line.trajectory(x, LINEAR, rest.grid))
    known = _driven(left.trajectory(x, LINEAR, grid[1:]))
    assert len(found) == 2
    for a, b in zip(found, known, strict=True):
        assert torch.equal(a, b)


def _driven(events):
    """The states after the steps of a trajectory on the made-up network."""
    driven = drive(events, lambda query: made_up(query.x, query.x.new_tensor([query.t])))
    return [event.x for event in driven if isinstance(event, Step)]
