"""EDM's σ as a schedule: the change of variables, the grid between limits of σ, and EDM's own sampler."""

import numpy as np
import pytest
import torch
from helpers import LINEAR, last, mixture
from hypothesis import given
from hypothesis import strategies as st

from pndm.runner.solver.grid import SPACINGS, grid_of
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.sigma import SigmaSchedule
from pndm.runner.solver.solve import network_calls, solve

EDM = SigmaSchedule()


def test_the_levels_are_edms_steps():
    """Eq. (5) of Karras et al. 2022 for as many steps as there are training steps."""
    i = np.arange(1000)
    expected = (80 ** (1 / 7) + i / 999 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(EDM.rho(i[::-1]), expected, rtol=1e-12)
    assert EDM.rho(-1) == 0
    assert EDM.alpha_cumprod(-1.0) == 1


@given(st.floats(0, 999))
def test_the_change_of_variables_is_exact(t):
    sigma = EDM.rho(t)
    np.testing.assert_allclose(EDM.alpha_cumprod(t), 1 / (1 + sigma**2), rtol=1e-15)
    np.testing.assert_allclose(EDM.log_alpha_cumprod(t), -np.log1p(sigma**2), rtol=1e-14)
    np.testing.assert_allclose(EDM.half_log_snr(t), -np.log(sigma), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(EDM.time(EDM.half_log_snr(t)), t, atol=1e-10)
    np.testing.assert_allclose(EDM.sigma(torch.tensor(t, dtype=torch.float64)), sigma, rtol=1e-14)


@given(st.floats(-0.99, 998.9))
def test_the_slope_is_that_of_the_level(t):
    h = 1e-6
    difference = (EDM.log_alpha_cumprod(t + h) - EDM.log_alpha_cumprod(t - h)) / (2 * h)
    if abs(t) > 2 * h:
        np.testing.assert_allclose(EDM.log_alpha_cumprod(t, nu=1), difference, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"sigma_min": 0}, "sigma_min is 0"),
        ({"sigma_min": "0.1"}, "sigma_min is '0.1'"),
        ({"sigma_max": float("inf")}, "sigma_max is inf"),
        ({"sigma_min": 2, "sigma_max": 1}, "must be below"),
        ({"diffusion_step": 1}, "whole number from 2"),
        ({"diffusion_step": 2.5}, "whole number from 2"),
        ({"sigma_min": 1e-6, "diffusion_step": 10**6}, "sigma_min 1e-06 is too small for 1000000 steps"),
    ],
)
def test_wrong_levels_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        SigmaSchedule(**arguments)


@pytest.mark.parametrize("schedule", [EDM, LINEAR, SigmaSchedule(1e-4, 1e3)], ids=["EDM", "linear", "wide"])
@pytest.mark.parametrize("steps", [2, 5, 18, 100])
def test_karras_between_limits(schedule, steps):
    low, high = 0.02, 50
    times = grid_of(schedule, steps, "karras", sigma_min=low, sigma_max=high)
    i = np.arange(steps)
    expected = (high ** (1 / 7) + i / (steps - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedule.rho(np.array(times[:-1])), expected, rtol=1e-8)
    assert times[-1] == -1
    noisy = grid_of(schedule, steps - 1, "karras", sigma_min=low, sigma_max=high, noisy_end=True)
    assert noisy == times[:-1]


def test_logsnr_between_limits():
    times = grid_of(EDM, 4, "logsnr", sigma_max=20, noisy_end=True)
    np.testing.assert_allclose(EDM.rho(np.array(times)), np.geomspace(20, 0.002, 5), rtol=1e-10)


@pytest.mark.parametrize("spacing", ["uniform", "quad", "trailing", "logsnr", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_noisy_end_leaves_out_the_last_call_alone(spacing, steps):
    whole = grid_of(LINEAR, steps + 1, spacing)
    assert grid_of(LINEAR, steps, spacing, noisy_end=True) == whole[:-1]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"spacing": "uniform", "sigma_min": 0.1}, "logsnr or karras alone"),
        ({"spacing": "karras", "sigma_min": 0.001}, "within the schedule's levels 0.002 … 80"),
        ({"spacing": "karras", "sigma_max": 81}, "within the schedule's levels"),
        ({"spacing": "karras", "sigma_max": 1, "sigma_min": 2}, "must rise"),
        ({"spacing": "karras", "sigma_max": -1}, "a number above 0"),
        ({"spacing": "karras", "noisy_end": 1}, "True or False"),
        ({"times": [9, 0], "noisy_end": True}, "exclude each other"),
    ],
)
def test_wrong_limits_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        solve("DDIM", lambda x, t: x, torch.zeros(1, 1), EDM, 3, **options)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_noisy_end_takes_a_time_of_training_more_than_steps(spacing):
    """One step more, and trailing would end between t = 0 and clean data."""
    assert grid_of(Schedule(diffusion_step=10), 9, spacing, noisy_end=True)[-1] == 0
    with pytest.raises(ValueError, match=r"^10 steps cannot be run; a whole number from 1 to 9 can$"):
        grid_of(Schedule(diffusion_step=10), 10, spacing, noisy_end=True)
    with pytest.raises(
        ValueError, match=r"^1 steps cannot be run; with one training step, and noisy_end, no number can$"
    ):
        grid_of(Schedule(diffusion_step=1), 1, spacing, noisy_end=True)


@pytest.mark.parametrize("option", [{"sigma_min": 0.1}, {"noisy_end": True}])
def test_adaptive_and_published_take_no_limits(option):
    for method, profile in (("PF", "exact"), ("DDIM", "published")):
        with pytest.raises(ValueError, match=next(iter(option))):
            solve(method, lambda x, t: x, torch.zeros(1, 1), LINEAR, 10, profile, **option)


def denoiser(x, sigma):
    """A made-up denoiser D(x; σ), of EDM's x, which bends."""
    return torch.sin(x / (1 + sigma)) * 0.7 + 0.2 * torch.cos(3 * sigma) * x / (1 + sigma**2)


def as_eps(x, t):
    """The same denoiser as ε of this project's x and t."""
    sigma = EDM.sigma(t).reshape(-1, 1)
    inner = x * (1 + sigma**2).sqrt()
    return (inner - denoiser(inner, sigma)) / sigma


def edms_sampler(noise, steps):
    """Algorithm 1 of Karras et al. 2022 for σ(t) = t, s(t) = 1, written from the paper; and its network calls."""
    i, calls = torch.arange(steps, dtype=torch.float64), 0
    levels = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    x = noise * levels[0]
    for t, s in zip(levels, [*levels[1:], torch.tensor(0.0)], strict=True):
        d, calls = (x - denoiser(x, t)) / t, calls + 1
        ahead = x + (s - t) * d
        if s > 0:
            d, calls = (d + (ahead - denoiser(ahead, s)) / s) / 2, calls + 1
            ahead = x + (s - t) * d
        x = ahead
    return x, calls


@pytest.mark.parametrize("steps", [2, 5, 18, 40])
def test_heun_is_edms_sampler(steps):
    noise = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, calls = edms_sampler(noise, steps)
    start = noise * (1 - EDM.alpha_cumprod(999)) ** 0.5  # EDM's σ_max · noise, divided by √(1+σ²)
    for spacing in ("karras", "karras with limits"):
        limits = {"sigma_min": 0.002, "sigma_max": 80.0} if "limits" in spacing else {}
        state = last(solve("Heun", as_eps, start, EDM, steps, spacing="karras", **limits))
        assert (state.x - expected).abs().max() < 1e-9 * expected.std()
        assert state.nfe == calls == 2 * steps - 1


def test_heun_takes_35_calls_at_18_steps():
    assert network_calls("Heun", EDM, 18, spacing="karras") == 35


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, line in METHODS.items() if not line.draws()])
def test_every_method_approaches_the_exact_flow(method):
    """On EDM's levels the flow of a Gaussian mixture is followed from the same noise to the same points."""
    network, noise = mixture(EDM, 3)
    flow = last(solve("Heun", network, noise, EDM, 400, spacing="karras")).x
    spacing = {} if METHODS[method].adaptive else {"spacing": "karras"}
    error = (last(solve(method, network, noise, EDM, 60, **spacing)).x - flow).square().mean().sqrt()
    assert error < (0.05 if method == "DDIM" else 0.02)


def test_it_is_a_schedule_like_the_others():
    assert isinstance(EDM, Schedule)
    assert EDM.diffusion_step == len(EDM.betas) == 1000
    np.testing.assert_allclose(np.cumprod(1 - EDM.betas), EDM.alphas_cumprod, rtol=1e-10)
