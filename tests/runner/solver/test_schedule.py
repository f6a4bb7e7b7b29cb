import itertools

import numpy as np
import pytest
from helpers import DATA

from pndm.runner.solver.schedule import Schedule

REFERENCE = np.load(DATA / "trajectories.npz")


@pytest.mark.parametrize("kind", ["linear", "quad", "cosine"])
def test_table_equals_the_reference(kind):
    np.testing.assert_allclose(Schedule(kind).alphas_cumprod, REFERENCE[f"alphas_cumprod.{kind}"], rtol=1e-13)
    assert Schedule(kind).alphas_cumprod.dtype == np.float64


@pytest.mark.parametrize("kind", ["linear", "quad", "cosine"])
def test_interpolation_is_exact_at_the_integers_and_clean_data(kind):
    schedule = Schedule(kind)
    steps = np.arange(1000)
    np.testing.assert_array_equal(schedule.alpha_cumprod(steps), schedule.alphas_cumprod)
    np.testing.assert_allclose(np.exp(schedule.log_alpha_cumprod(steps)), schedule.alphas_cumprod, rtol=1e-12)
    assert schedule.alpha_cumprod(-1) == schedule.alpha_cumprod(-1.0) == 1.0


@pytest.mark.parametrize("kind", ["linear", "quad", "cosine"])
def test_interpolation_is_smooth(kind):
    """Slope and curvature from both sides of every step agree, and the slope is that of ᾱ itself."""
    schedule, steps = Schedule(kind), np.arange(1.0, 990.0)
    log = schedule.log_alpha_cumprod
    for order, tolerance in ((1, 1e-9), (2, 1e-6)):
        np.testing.assert_allclose(log(steps - 1e-9, nu=order), log(steps + 1e-9, nu=order), atol=tolerance)
    h = 1e-4
    difference = (np.log(schedule.alpha_cumprod(steps + h)) - np.log(schedule.alpha_cumprod(steps - h))) / (2 * h)
    np.testing.assert_allclose(difference, log(steps, nu=1), rtol=1e-5)


@pytest.mark.parametrize(
    "kind, start, end, steps",
    [
        *itertools.product(["linear", "quad"], [1e-6, 1e-4, 0.1], [0.1, 0.5, 0.9], [2, 3, 10, 100]),
        *itertools.product(["linear", "quad"], [1e-6, 1e-4], [0.02], [10, 100, 1000, 4000]),
        *itertools.product(["cosine"], [1e-4], [0.02], [1, 2, 10, 1000]),
    ],
)
def test_alpha_falls_between_the_steps_for_every_schedule(kind, start, end, steps):
    alphas = Schedule(kind, start, end, steps).alpha_cumprod(np.linspace(-1, steps - 1, 16 * steps + 1))
    assert alphas[0] == 1
    assert alphas[-1] > 0
    assert np.all(np.diff(alphas) < 0)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("sine",), "linear, quad, cosine"),
        (("linear", 0.02, 1e-4), "beta_start"),
        (("linear", 0.0, 0.02), "beta_start"),
        (("linear", 1e-4, 1.0), "beta_start"),
        (("linear", 1e-4, 0.02, 0), "diffusion_step"),
        (("linear", 0.5, 0.999, 1000), "ᾱ = 0"),
        (("linear", 1e-4, 0.02, 10**9), "diffusion_step is 1000000000, it must be a whole number from 1 to 1000000"),
        (("linear", 1e-4, 0.02, 10.5), "whole number"),
        (("linear", 1e-320, 0.02), "β = 9.99989e-321 is too small"),
        (("linear", "a", 0.02), "beta_start is 'a', it must be a number"),
        (("linear", 1e-4, 0.02, 2, [0.1, None]), "betas must be one row of numbers"),
        (("linear", 1e-4, 0.02, 2, [0.1, 1e-320]), "is too small"),
    ],
)
def test_wrong_arguments_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        Schedule(*arguments)
