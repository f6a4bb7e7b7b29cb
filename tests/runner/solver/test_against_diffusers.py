"""The later methods against diffusers' schedulers, on the same grid, in float64.

The schedulers keep float32 tables; they are given this project's float64 values of the same noise levels.
"""

from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from helpers import made_up, reference_noise

from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import solve

SCHEDULE = Schedule("linear")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of NumPy and of names to come
# Integers, as the schedulers want; the later unequal, into clean data or to t = 0 (diffusers' "sigma_min").
EQUAL = [900, 800, 700, 600, 500, 400, 300, 200, 100, 0, -1]
UNEQUAL = [999, 930, 820, 750, 600, 420, 300, 150, 60, 10, -1]
TO_ZERO = [999, 930, 820, 750, 600, 420, 300, 150, 60, 10, 0]
LONG = [*range(990, 0, -55), 0, -1]


def ours(method, times, **options):
    *_, state = solve(method, made_up, reference_noise(), SCHEDULE, 1, times=times, **options)
    return state.x


def on_grid(scheduler, times, repeat=1):
    """The scheduler set to `times`, in float64."""
    scheduler.set_timesteps(len(times) - 1)
    sigmas = torch.tensor([SCHEDULE.rho(t) for t in times])
    asked = torch.tensor(times[:-1], dtype=torch.float64)
    if repeat == 2:  # Heun: the inner levels stand twice
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
        asked = torch.cat([asked[:1], asked[1:].repeat_interleave(2)])
    scheduler.sigmas, scheduler.timesteps = sigmas, asked
    scheduler.alphas_cumprod = torch.from_numpy(SCHEDULE.alphas_cumprod)
    scheduler.num_inference_steps = len(times) - 1
    return scheduler


def theirs(scheduler, times):
    x = reference_noise()
    for t in on_grid(scheduler, times).timesteps:
        x = scheduler.step(made_up(x, t.expand(len(x))), t, x).prev_sample
    return x


def compare(a, b, tolerance=1e-6):
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("limit", [{}, {"clip": True}, {"threshold": 0.6}])
def test_ddim(eta, limit):
    """Clipping here takes ε from the clipped image, which is their use_clipped_model_output."""
    names = {"clip": ("clip_sample", True), "threshold": ("dynamic_thresholding_ratio", limit.get("threshold"))}
    config = {"clip_sample": False} | dict(names[name] for name in limit) | {"thresholding": "threshold" in limit}
    # sample_max_value bounds what is divided by; the paper that thresholding is of knows no such bound
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", sample_max_value=1e9, **config)
    scheduler = on_grid(scheduler, EQUAL)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    draws = torch.randn(10, *reference_noise().shape, dtype=torch.float64, generator=rng)
    x = reference_noise()
    for k, t in enumerate(EQUAL[:-1]):
        eps = made_up(x, torch.full((len(x),), float(t), dtype=torch.float64))
        more = {"variance_noise": draws[k]} if eta else {}
        x = scheduler.step(eps, t, x, eta, use_clipped_model_output=True, **more).prev_sample
    compare(ours("DDIM", EQUAL, eta=eta, noise=lambda k: draws[k], **limit), x, 1e-9)


@pytest.mark.parametrize("limit", [{}, {"clip": True}])
def test_ddpm(limit, monkeypatch):
    scheduler = on_grid(diffusers.DDPMScheduler(beta_schedule="linear", clip_sample="clip" in limit), EQUAL)
    rng = torch.Generator().manual_seed(0)
    draws = torch.randn(10, *reference_noise().shape, dtype=torch.float64, generator=rng)
    x = reference_noise()
    scheduler.timesteps = scheduler.timesteps.long()
    for k, t in enumerate(EQUAL[:-1]):
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, k=k, **__: draws[k])
        x = scheduler.step(made_up(x, torch.full((len(x),), float(t), dtype=torch.float64)), t, x).prev_sample
    compare(ours("DDPM", EQUAL, noise=lambda k: draws[k], **limit), x, 1e-9)


@pytest.mark.parametrize("method, order", [("DEIS-logrhoAB1", 2), ("DEIS-logrhoAB2", 3)])
def test_deis(method, order):
    """Their last level is that of t = 0."""
    compare(ours(method, TO_ZERO), theirs(diffusers.DEISMultistepScheduler(solver_order=order), TO_ZERO), 1e-9)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("times", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("limit", [{}, {"threshold": 0.6}])
def test_dpm_solver_plus_plus(order, times, limit):
    config = {"thresholding": True, "dynamic_thresholding_ratio": 0.6, "sample_max_value": 1e9} if limit else {}
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=order, **config)
    compare(ours(f"DPM-Solver++{order}M", times, **limit), theirs(scheduler, times))


def test_dpm_solver_plus_plus_over_many_steps():
    """From 15 steps on theirs lowers the order of the last step alone, and 3M's of the last but one is not 2."""
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=2)
    compare(ours("DPM-Solver++2M", LONG), theirs(scheduler, LONG))


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver(order):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    )
    compare(ours(f"DPM-Solver-{order}M", TO_ZERO), theirs(scheduler, TO_ZERO))


def test_dpm_solver_singlestep():
    """Their stages are times of the grid: two of their steps are one here if the middle one is the middle in λ."""
    ends = [999.0, 700.0, 300.0, 50.0]
    middles = [
        float(SCHEDULE.time((SCHEDULE.half_log_snr(a) + SCHEDULE.half_log_snr(b)) / 2)) for a, b in pairwise(ends)
    ]
    fine = [time for pair in zip(ends, middles, strict=False) for time in pair] + ends[-1:]
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        solver_order=2, algorithm_type="dpmsolver", final_sigmas_type="sigma_min", lower_order_final=False
    )
    compare(ours("DPM-Solver-2S", ends), theirs(scheduler, fine))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("scale, times", [("bh1", TO_ZERO), ("bh2", EQUAL), ("bh2", UNEQUAL), ("bh2", LONG)])
def test_unipc(order, scale, times):
    """Into clean data their bh1 is NaN, the product of an infinite B(h) and 0."""
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=order, solver_type=scale)
    compare(ours(f"UniPC{order}-{scale}", times), theirs(scheduler, times), 1e-9)


@pytest.mark.parametrize("times", [EQUAL, UNEQUAL])
def test_ipndm(times):
    """Theirs is for a network that predicts v = √ᾱ ε − √(1−ᾱ) x̂₀, at levels of its own."""
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(len(times) - 1)
    alphas = torch.tensor([SCHEDULE.alpha_cumprod(t) for t in times])
    scheduler.alphas, scheduler.betas = alphas.sqrt(), (1 - alphas).sqrt()
    scheduler.timesteps = torch.tensor(times[:-1], dtype=torch.float64)
    x = reference_noise()
    for alpha, t in zip(alphas, scheduler.timesteps, strict=False):
        eps = made_up(x, t.expand(len(x)))
        data = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
        x = scheduler.step(alpha.sqrt() * eps - (1 - alpha).sqrt() * data, t, x).prev_sample
    compare(ours("iPNDM4", times), x, 1e-9)


@pytest.mark.parametrize("times", [EQUAL, UNEQUAL])
def test_heun(times):
    """Theirs holds x/√ᾱ."""
    scheduler = on_grid(diffusers.HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02), times, repeat=2)
    y = reference_noise() / SCHEDULE.alpha_cumprod(times[0]) ** 0.5
    for t in scheduler.timesteps:
        eps = made_up(scheduler.scale_model_input(y, t), t.expand(len(y)))
        y = scheduler.step(eps, t, y).prev_sample
    compare(ours("Heun", times), y * SCHEDULE.alpha_cumprod(times[-1]) ** 0.5, 1e-9)
