"""`MethodScheduler` on flow matching: the grids and steps of diffusers, and the orders of the methods."""

import math
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from helpers import mixture, scheduler_of

from pndm.runner.solver.flow import FlowSchedule
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.solve import solve
from pndm.scheduler import MethodScheduler
from pndm.times import one_call

FLOW = {"prediction_type": "flow_prediction"}
ABLE = [name for name in METHODS if one_call(name)]


# Measured from 80 to 160 steps: 1.73 (++2M) to 2.1. On equal steps of σ the steps of λ are long at both ends.
SECOND = ["iPNDM2", "DEIS-tAB1", "DEIS-rhoAB1", "DEIS-logrhoAB1", "DPM-Solver++2M", "UniPC2-bh1", "UniPC2-bh2"]
FIRST_ORDER = 0.03  # the error of DDIM in 80 steps


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def velocity(x, sigma):
    """A made-up network of flow matching."""
    return torch.sin(2 * x + 3 * sigma) + 0.3 * x


def drive(scheduler, network, x):
    for i in range(len(scheduler.timesteps)):
        x = scheduler.step(network(x, scheduler.sigmas[i].item()), scheduler.timesteps[i], x).prev_sample
    return x


CONFIGS = [
    {},
    {"shift": 3.0},
    {"shift": 3.0, "use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
    {"num_train_timesteps": 500, "shift": 0.7},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("given", ["steps", "sigmas"])
def test_times_are_those_of_flow_match_euler(config, given):
    theirs = scheduler_of("FlowMatchEulerDiscreteScheduler", **config)
    mine = MethodScheduler.from_config(theirs.config, method="DDIM")
    for steps in (1, 2, 3, 28):
        if steps == 1 and config.get("shift_terminal"):
            continue  # one σ cannot be both 1 and the last
        arguments = {"num_inference_steps": steps} if given == "steps" else {"sigmas": np.linspace(1, 1 / steps, steps)}
        arguments |= {"mu": 0.8} if config.get("use_dynamic_shifting") else {}
        theirs.set_timesteps(**arguments)
        mine.set_timesteps(**arguments)
        torch.testing.assert_close(mine.sigmas, theirs.sigmas, rtol=0, atol=1e-6)
        torch.testing.assert_close(mine.timesteps, theirs.timesteps, rtol=0, atol=1e-3)
        assert mine.timesteps.dtype == torch.float32


@pytest.mark.parametrize("config", CONFIGS)
def test_times_and_sigmas_to_train_at_are_those_of_flow_match_euler(config):
    config = {key: value for key, value in config.items() if key not in ("shift_terminal", "use_karras_sigmas")}
    theirs = scheduler_of("FlowMatchEulerDiscreteScheduler", **config)
    mine = MethodScheduler.from_config(theirs.config, method="DDIM")
    torch.testing.assert_close(mine.sigmas[:-1], theirs.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(mine.timesteps, theirs.timesteps, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ddim_is_euler(shift):
    """φ is a straight line in x of flow matching."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    mine = MethodScheduler.from_config(theirs.config, method="DDIM")
    x = noise(2, 3, 4, 4)
    for steps in (1, 4, 28):
        theirs.set_timesteps(steps)
        mine.set_timesteps(steps)
        expected = drive(theirs, velocity, x.float())
        torch.testing.assert_close(drive(mine, velocity, x.float()), expected, rtol=0, atol=1e-5)
        mine.set_timesteps(steps)
        y = x
        for sigma, after in pairwise(mine.sigmas.tolist()):
            y = y + (after - sigma) * velocity(y, sigma)
        torch.testing.assert_close(drive(mine, velocity, x), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order, kind", [(2, "bh1"), (2, "bh2"), (3, "bh1"), (3, "bh2")])
def test_unipc_is_diffusers_unipc_in_flow_mode(order, kind):
    """Away from σ = 1: there diffusers puts 1 − 1e-6, which gives the first step another weight in the second one."""
    settings = {"use_flow_sigmas": True, "flow_shift": 2.0, "solver_order": order, "solver_type": kind, **FLOW}
    theirs = scheduler_of("UniPCMultistepScheduler", **settings)
    mine = MethodScheduler.from_config(theirs.config, method=f"UniPC{order}-{kind}")
    sigmas, x = np.linspace(0.97, 0.03, 12), noise(2, 3, 4, 4)
    theirs.set_timesteps(sigmas=sigmas)
    mine.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(mine.sigmas, theirs.sigmas, rtol=0, atol=1e-6)
    # The last step: bh1 into clean data is NaN there.
    found, expected = x, x
    for i in range(11):
        sigma = theirs.sigmas[i].item()
        found = mine.step(velocity(found, sigma), mine.timesteps[i], found).prev_sample
        expected = theirs.step(velocity(expected, sigma), theirs.timesteps[i], expected).prev_sample
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_steps_of_unipc_and_dpm_solver_in_flow_mode():
    for name in ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler"):
        theirs = scheduler_of(name, use_flow_sigmas=True, flow_shift=3.0, **FLOW)
        mine = MethodScheduler.from_config(theirs.config, method="DPM-Solver++2M")
        theirs.set_timesteps(20)
        mine.set_timesteps(20)
        torch.testing.assert_close(mine.sigmas, theirs.sigmas, rtol=0, atol=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ABLE)
def test_orders(method):
    """On one Gaussian, whose flow is known, from σ = 1 to the data, in equal steps of σ."""
    schedule = FlowSchedule()
    eps, x = mixture(schedule, 1)
    expected = eps.flow(x, 1000, 0)

    def network(x, sigma):  # ε − x₀ of x_σ
        t = torch.full((len(x),), 1000 * sigma, dtype=x.dtype)
        scaled = x / schedule.scale(1000 * sigma)
        noise, alpha = eps(scaled, t), float(schedule.alpha_cumprod(1000 * sigma))
        return noise - (scaled - math.sqrt(1 - alpha) * noise) / math.sqrt(alpha)

    def error(steps):
        scheduler = MethodScheduler(method=method, **FLOW)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        y = x
        for k, t in enumerate(scheduler.timesteps):
            y = scheduler.step(network(y, 1 - k / steps), t, y, generator=torch.manual_seed(0)).prev_sample
        return (y - expected).square().mean().sqrt().item()

    if method == "DDPM":  # its noise is no error of the flow
        assert math.isfinite(error(40))
    elif method == "DDIM":
        assert 0.9 < math.log2(error(40) / error(80)) < 1.1
    elif method in SECOND:
        assert math.log2(error(80) / error(160)) > 1.7
    else:
        assert error(80) < FIRST_ORDER / 10


@pytest.mark.parametrize("method", ["DDIM", "DPM-Solver++2M", "UniPC3-bh2", "DEIS-tAB3"])
def test_a_straight_flow_is_followed_exactly(method):
    """ε − x₀ that never changes: the image is x₀, whatever the grid, and whatever the latents' precision."""
    data, eps = noise(2, 3, 4, 4, seed=1), noise(2, 3, 4, 4, seed=2)
    scheduler = MethodScheduler(method=method, shift=3.0, **FLOW)
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        scheduler.set_timesteps(7)
        x = eps.to(dtype)
        for t in scheduler.timesteps:
            out = scheduler.step((eps - data).to(dtype), t, x)
            x = out.prev_sample
            torch.testing.assert_close(out.pred_original_sample.double(), data, rtol=0, atol=bound)
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), data, rtol=0, atol=bound)


def test_noise_and_velocity():
    theirs, mine = (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        MethodScheduler(shift=3.0, method="DDIM", **FLOW),
    )
    data, eps = noise(2, 3, 4, 4, seed=1).float(), noise(2, 3, 4, 4, seed=2).float()
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(5)
    t = mine.timesteps[2:3]
    torch.testing.assert_close(mine.scale_noise(data, t, eps), theirs.scale_noise(data, theirs.timesteps[2:3], eps))
    assert torch.equal(mine.add_noise(data, eps, t), mine.scale_noise(data, t, eps))
    assert torch.equal(mine.get_velocity(data, eps, t), eps - data)
    with pytest.raises(ValueError, match="timesteps must be in 0 … 1000"):
        mine.add_noise(data, eps, [1001.0])


def test_told_times_may_be_others():
    """Some pipelines give both: σ says where x is, and t what the network is told."""
    scheduler = MethodScheduler(method="DDIM", **FLOW)
    scheduler.set_timesteps(sigmas=[1.0, 0.5], timesteps=[999, 400])
    assert scheduler.timesteps.tolist() == [999, 400]
    assert scheduler.sigmas.tolist() == [1, 0.5, 0]
    data, eps = noise(1, 1, 2, 2, seed=1), noise(1, 1, 2, 2, seed=2)
    torch.testing.assert_close(scheduler.add_noise(data, eps, scheduler.timesteps[1:]), (data + eps) / 2)


@pytest.mark.parametrize(
    "config, arguments, said",
    [
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 3}, "set_timesteps needs mu"),
        ({}, {"num_inference_steps": 0}, "0 steps cannot be run"),
        ({}, {"num_inference_steps": 1001}, "1001 steps cannot be run"),
        ({}, {"sigmas": [1.5, 0.5]}, "sigmas must be numbers above 0, 1 at most"),
        ({}, {"sigmas": [0.5, 0.7]}, "must fall from 1000 at most to above 0"),
        ({}, {"timesteps": [500.0, 0.0]}, "must fall from 1000 at most to above 0"),
        ({}, {"sigmas": [1.0, 0.5], "num_inference_steps": 3}, "num_inference_steps is 3, but 2 steps are given"),
    ],
)
def test_steps_that_cannot_be(config, arguments, said):
    with pytest.raises(ValueError, match=said):
        MethodScheduler(method="DDIM", **FLOW, **config).set_timesteps(**arguments)


def test_solve_has_no_grid_for_it():
    with pytest.raises(ValueError, match="schedule is a FlowSchedule; MethodScheduler runs it"):
        solve("DDIM", lambda x, t: x, noise(1, 2), FlowSchedule(), 5)


def test_stable_diffusion_3():
    """A small pipeline with random weights, prompts given as embeddings: DDIM is what Euler is in it."""
    pytest.importorskip("transformers", reason="diffusers' Stable Diffusion 3 needs transformers")
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=[32], layers_per_block=1, latent_channels=4, sample_size=16, shift_factor=0.1,
        down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"],
    ).eval()  # fmt: skip
    absent = [f"{name}{i}" for name in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, **dict.fromkeys(absent)
    )
    pipeline.set_progress_bar_config(disable=True)
    embeds = {
        name: noise(*shape, seed=i).float()
        for i, (name, shape) in enumerate({
            "prompt_embeds": (1, 5, 16), "negative_prompt_embeds": (1, 5, 16),
            "pooled_prompt_embeds": (1, 16), "negative_pooled_prompt_embeds": (1, 16),
        }.items())
    }  # fmt: skip

    def latents(scheduler):
        pipeline.scheduler = scheduler
        return pipeline(num_inference_steps=6, generator=torch.manual_seed(0), output_type="latent", **embeds).images

    expected = latents(scheduler)
    found = {name: latents(MethodScheduler.from_config(scheduler.config, method=name)) for name in ("DDIM", "iPNDM2")}
    torch.testing.assert_close(found["DDIM"], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert not torch.allclose(found["iPNDM2"], expected, rtol=0, atol=1e-3)
