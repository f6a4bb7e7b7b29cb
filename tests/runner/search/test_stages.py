"""Rank, grid and guard: what they choose, and what they refuse."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from helpers import LINEAR
from hypothesis import given, settings
from hypothesis import strategies as st

from pndm.runner.search import rank
from pndm.runner.search.grid import cheapest, costs, grids
from pndm.runner.search.guard import judged
from pndm.runner.search.problem import better, rms
from pndm.runner.search.rank import Candidate
from pndm.runner.solver.grid import grid_of
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.solve import network_calls, solve


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1), st.integers(0, 2**32 - 1))))
def test_dynamic_programming_finds_what_brute_force_finds(problem_of):
    count, steps, seed = problem_of
    cost = np.where(np.triu(np.ones((count, count)), 1) > 0, np.random.default_rng(seed).random((count, count)), np.inf)
    paths = [(0, *inner, count - 1) for inner in combinations(range(1, count - 1), steps - 1)]
    sums = [sum(cost[a, b] for a, b in pairwise(path)) for path in paths]
    found = cheapest(cost, steps)
    assert len(found) == steps + 1
    assert sum(cost[a, b] for a, b in pairwise(found)) == pytest.approx(min(sums))


def test_more_steps_than_times_are_refused():
    with pytest.raises(ValueError, match="no path of 4 steps"):
        cheapest(np.full((4, 4), 1.0), 4)


@pytest.mark.parametrize("power", [0, 1])
def test_a_step_costs_what_ddim_ends_away_from_the_flow(problem, power):
    """Infinite where no step leads: to the same time, and back."""
    times, states, answers = problem.trajectory(problem.noises(4).x)
    cost = costs(LINEAR, times, states, answers, power)
    assert np.isinf(cost[np.tril_indices(len(times))]).all()
    assert np.isfinite(cost[np.triu_indices(len(times), 1)]).all()
    for i, j in ((0, 1), (3, 20), (30, len(times) - 1)):
        *_, end = solve("DDIM", problem, states[i], LINEAR, 1, times=[times[i], times[j]])
        away = (end.x - states[j]) / float(LINEAR.alpha_cumprod(times[j])) ** (power / 2)
        assert cost[i, j] == pytest.approx(away.square().mean().sqrt().item(), rel=1e-3, abs=1e-6)


def test_a_step_along_an_exact_prediction_costs_nothing():
    """With one ε all along, φ is the flow."""
    x, eps = torch.ones(1, 2, 3), torch.full((1, 2, 3), 0.5)
    times = [900.0, 600.0, 200.0, -1.0]
    signals = [LINEAR.alpha_cumprod(t) ** 0.5 for t in times]
    states = torch.stack([a * x[0] + (1 - a**2) ** 0.5 * eps[0] for a in signals])
    cost = costs(LINEAR, times, states, eps.expand(3, 2, 3), 1)
    assert cost[np.triu_indices(4, 1)] == pytest.approx(0, abs=1e-5)


def test_grids_of_its_own_begin_and_end_where_the_flow_does(problem):
    noises = problem.noises(8)
    for grid in grids(problem, noises, 5).values():
        assert (len(grid), grid[0], grid[-1]) == (6, 999, -1)
        assert sorted(grid, reverse=True) == grid


@pytest.mark.parametrize("calls", [1, 5, 8])
def test_candidates_spend_the_calls_exactly(calls):
    found = list(rank.candidates(LINEAR, calls))
    assert found
    for candidate in found:
        assert network_calls(candidate.line, LINEAR, 1, times=candidate.times) == calls


def test_a_rank_begins_with_the_nearest_and_says_what_cannot_be_told_from_it(problem):
    found = rank.rank(problem, problem.noises(64), rank.candidates(LINEAR, 6, ("DDIM", "iPNDM3", "UniPC3-bh2")))
    distances = [candidate.distance[0] for candidate in found]
    assert distances == sorted(distances)
    errors = found[0].errors
    twin = Candidate(
        "twin", "quad", found[0].line, found[0].times, errors + 1e-3 * errors.std() * (-1) ** np.arange(64)
    )
    worse = Candidate("worse", "quad", found[0].line, found[0].times, errors + errors.std())
    assert rank.indistinguishable([found[0], twin, worse]) == ["twin quad"]


def test_the_guard_refuses_a_grid_that_is_worse(problem):
    held_out = problem.noises(64, held_out=True)
    good = Candidate("iPNDM3", "quad", METHODS["iPNDM3"], grid_of(LINEAR, 6, "quad"))
    bad = Candidate("iPNDM3", "own", METHODS["iPNDM3"], [999.0, 990.0, 980.0, 970.0, 960.0, 950.0, -1.0])
    winner, measured, refused = judged(problem, held_out, [[good], [bad], []])
    assert winner.label == "iPNDM3 quad"
    assert [candidate.label for candidate in refused] == ["iPNDM3 own"]
    assert len(measured) == 2


def test_the_guard_refuses_what_is_better_by_less_than_its_error(problem):
    held_out = problem.noises(64, held_out=True)
    times = grid_of(LINEAR, 6, "quad")
    nearly = [999.0, times[1] + 1e-3, *times[2:]]
    same = Candidate("iPNDM3", "quad", METHODS["iPNDM3"], times), Candidate("iPNDM3", "own", METHODS["iPNDM3"], nearly)
    for before, after in (same, same[::-1]):
        errors = [candidate.measured(problem, held_out).errors for candidate in (before, after)]
        winner, _, refused = judged(problem, held_out, [[before], [after]])
        assert (winner.label == after.label) == better(errors[1], errors[0]) == (not refused)


def test_better_is_by_more_than_two_standard_errors():
    others = np.linspace(1.0, 2.0, 16)
    spread = np.tile([-1.0, 1.0], 8)  # mean 0, standard error 1.0328 / 4
    for gain, enough in ((1.0, False), (1.9, False), (2.1, True), (3.0, True)):
        assert better(others - (gain * np.std(spread, ddof=1) / 4 + spread), others) == enough
        assert not better(others, others - (gain * np.std(spread, ddof=1) / 4 + spread))


def test_the_error_of_a_root_mean_square():
    value, error = rms(np.array([1.0, 1.0, 4.0, 4.0]))
    assert (value, error) == pytest.approx((2.5**0.5, 3**0.5 / 2 / (2 * 2.5**0.5)))


def test_a_solver_that_diverges_never_wins():
    finite, infinite = np.ones(8), np.full(8, np.inf)
    assert better(finite, infinite)
    assert not better(infinite, finite)
    assert not better(infinite, infinite)
