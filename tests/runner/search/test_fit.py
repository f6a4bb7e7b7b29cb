"""The fit: its derivatives against autograd and differences, and that it improves on noise it has not seen."""

from itertools import islice

import numpy as np
import pytest
import torch
from helpers import LINEAR, mixture

from pndm.runner.search import fit as fit_module
from pndm.runner.search.fit import Parameters, derivatives, fit
from pndm.runner.search.problem import better, rms, squares
from pndm.runner.search.rank import Candidate
from pndm.runner.solver.grid import grid_of
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.tabulated import tabulate
from pndm.runner.solver.transfer import phi

CALLS = 4
GRID = grid_of(LINEAR, CALLS, "quad")


def start():
    parameters = Parameters(LINEAR, CALLS, GRID[0], GRID[-1])
    return parameters, parameters.vector(tabulate(METHODS["iPNDM2"], LINEAR, GRID), GRID)


def test_a_vector_is_the_solver_that_it_was_made_of():
    parameters, vector = start()
    line, times = parameters.solver(vector)
    assert times == pytest.approx(GRID, abs=1e-6)
    known = tabulate(METHODS["iPNDM2"], LINEAR, GRID)
    assert line.told == pytest.approx(known.told, abs=1e-6)
    assert line.weights == known.weights


def test_times_that_do_not_fall_are_no_solver():
    parameters, vector = start()
    vector[0], vector[1] = vector[1], vector[0]
    assert parameters.solver(vector) is None
    assert parameters.solver(vector * np.nan) is None


@pytest.mark.parametrize(("difference", "close"), [(fit_module.DIFFERENCE, 0.1), (1e-6, 1e-4)])
@pytest.mark.parametrize("scale", [np.inf, 0.5])
def test_the_gradient_is_that_of_differences_and_of_autograd(scale, problem, monkeypatch, difference, close):
    monkeypatch.setattr(fit_module, "DIFFERENCE", difference)
    parameters, vector = start()
    vector[[2, 3, 6]] = LINEAR.half_log_snr(np.array([30.0, 990.0, 25.0]))  # not at the ends, where there is one side
    times = parameters.solver(vector)[1]
    told = parameters.solver(vector)[0].told
    network, x = mixture(LINEAR, 3)
    ends = torch.zeros_like(x)
    _, slope = derivatives(problem, parameters, vector, x, ends, scale)

    def cost(end):
        means = end.flatten(1).square().mean(1)
        means = means if scale == np.inf else scale**2 * torch.log1p(means / scale**2)
        return means.sum() * end[0].numel() / 2

    def half_loss(moved):
        return float(cost(problem.run(*parameters.solver(moved), x)[0]))

    unit = np.eye(len(vector)) * 1e-5
    central = [(half_loss(vector + step) - half_loss(vector - step)) / 2e-5 for step in unit]
    assert slope.numpy() == pytest.approx(np.array(central), rel=close, abs=0.05 * close * np.abs(central).max())

    weights = torch.tensor(vector[2 * CALLS - 1 :], requires_grad=True)
    rows, state, history = weights.split([1, 2, 3, 4]), x, []
    for row, tau, t, s in zip(rows, told, times, times[1:], strict=False):
        history = [network(state, torch.tensor([tau], dtype=torch.float64)), *history]
        total = sum(weight * eps for weight, eps in zip(row, history, strict=True))
        state = phi(state, total, *(float(LINEAR.alpha_cumprod(time)) for time in (t, s)))
    cost(state).backward()
    known = weights.grad.numpy()
    assert slope.numpy()[2 * CALLS - 1 :] == pytest.approx(known, rel=close, abs=0.05 * close * np.abs(known).max())


def test_known_answers_are_not_asked_again(problem):
    line, times = start()[0].solver(start()[1])
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    end, answers = problem.run(line, times, x)
    spent = problem.spent
    again, _ = problem.run(line, times, x, answers[:3])
    assert torch.equal(end, again)
    assert problem.spent - spent == 8


def test_the_fit_is_better_on_held_out_noise_and_the_same_from_the_same_seed(problem):
    pool, held_out = problem.noises(128), problem.noises(64, held_out=True)
    parameters, vector = start()
    minibatches = [pool.part(first, 32) for first in range(0, 128, 32)]
    before = problem.errors(*parameters.solver(vector), held_out)
    *_, (found, _) = islice(fit(problem, parameters, vector, minibatches, 0.5), 8)
    *_, (again, _) = islice(fit(problem, parameters, vector, minibatches, 0.5), 8)
    assert np.array_equal(found, again)
    after = problem.errors(*parameters.solver(found), held_out)
    assert better(after, before)
    assert rms(after)[0] < 0.5 * rms(before)[0]


def test_a_fit_never_takes_a_step_that_is_worse(problem):
    pool = problem.noises(64)
    parameters, vector = start()
    twice = [pool, pool]  # so that all steps are judged by the same noises
    values = [value for _, value in islice(fit(problem, parameters, vector, twice, 0.5), 6)]
    assert values == sorted(values, reverse=True)


def test_the_flow_of_the_search_is_the_one_in_closed_form(problem):
    noises = problem.noises(16)
    known = mixture(LINEAR, 3)[0].flow(noises.x.double(), 999, -1)
    assert float(squares(noises.ends - known).mean()) ** 0.5 < 2e-3


def test_searched_and_held_out_noises_differ(problem):
    assert not torch.equal(problem.noises(4).x, problem.noises(4, held_out=True).x)


def test_errors_are_of_the_noises_asked_for(problem):
    noises = problem.noises(40)
    found = Candidate("DDIM", "quad", METHODS["DDIM"], GRID).measured(problem, noises).errors
    part = Candidate("DDIM", "quad", METHODS["DDIM"], GRID).measured(problem, noises.part(8, 16)).errors
    assert part == pytest.approx(found[8:24], rel=1e-4)
