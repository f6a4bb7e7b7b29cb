"""`MethodScheduler`: the states of `solve`, in diffusers' pipelines, whatever they do between the calls."""

import copy
import json
import logging
import math
import re
import sys

import diffusers
import numpy as np
import pytest
import torch
from helpers import ROOT, last, made_up, mixture

from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.schedule import Schedule, eps_from
from pndm.runner.solver.solve import solve
from pndm.runner.solver.transfer import phi
from pndm.scheduler import MethodScheduler

LISTED = ["DDIM", "S-PNDM", "F-PNDM", "FON"]
STABLE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "skip_prk_steps": True, "set_alpha_to_one": False, "timestep_spacing": "leading",
}  # fmt: skip


def drive(scheduler, network, x, begin=0):
    """A pipeline's loop; begin: the entry of `timesteps` that an image to image run begins at."""
    if begin:
        scheduler.set_begin_index(begin)
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(network(x, t.to(x.dtype).expand(len(x))), t, x).prev_sample
    return x


def run(network, x, steps, **config):
    scheduler = MethodScheduler(**config)
    scheduler.set_timesteps(steps)
    return drive(scheduler, network, x)


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", LISTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_schedule, kind", [("linear", "linear"), ("squaredcos_cap_v2", "cosine")])
def test_states_and_calls_are_those_of_solve(method, dtype, beta_schedule, kind):
    x = noise(2, 3, 4, 4, dtype=dtype)
    for steps in (1, 2, 3, 4, 10, 37, 50):
        asked = []

        def network(x, t, asked=asked):
            asked.append(t[0].item())
            return made_up(x, t)

        state = last(solve(method, network, x, Schedule(kind), steps))
        scheduler = MethodScheduler(method=method, beta_schedule=beta_schedule)
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == pytest.approx(asked, rel=1e-6)
        assert len(scheduler.timesteps) == state.nfe
        found = drive(scheduler, made_up, x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, state.x, rtol=0, atol=1e-6 * max(1, state.x.abs().max().item()))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("method", LISTED)
def test_what_the_network_predicts_does_not_matter(method, prediction):
    schedule = Schedule()
    eps, x = mixture(schedule, 3)

    def network(x, t):
        alpha = x.new_tensor(schedule.alpha_cumprod(t.numpy()))[:, None]
        data = (x - (1 - alpha).sqrt() * eps(x, t)) / alpha.sqrt()
        v = alpha.sqrt() * eps(x, t) - (1 - alpha).sqrt() * data
        answer = {"epsilon": eps(x, t), "sample": data, "v_prediction": v}[prediction]
        torch.testing.assert_close(
            eps_from(answer, x, alpha.sqrt(), (1 - alpha).sqrt(), prediction), eps(x, t), rtol=1e-9, atol=1e-9
        )
        return torch.cat([answer, answer * 0 + 7], 1)  # and variances, which are not used

    expected = last(solve(method, eps, x, schedule, 20)).x
    found = run(network, x, 20, method=method, prediction_type=prediction)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "linear", "num_train_timesteps": 100},
        {"trained_betas": np.geomspace(1e-4, 0.05, 300).tolist(), "num_train_timesteps": 300},
    ],
)
def test_noise_levels_are_diffusers_own(config):
    theirs, mine = diffusers.DDIMScheduler(**config), MethodScheduler(**config)
    torch.testing.assert_close(mine.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(mine.betas, theirs.betas, rtol=1e-4, atol=1e-7)
    assert len(mine) == len(theirs)
    assert mine.timesteps.tolist() == theirs.timesteps.tolist()
    x, n = noise(4, 3, 2, 2, dtype=torch.float32), noise(4, 3, 2, 2, dtype=torch.float32, seed=1)
    times = torch.tensor([0, 17, 50, 99])
    torch.testing.assert_close(mine.add_noise(x, n, times), theirs.add_noise(x, n, times), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
def test_spacings_are_diffusers_own(spacing, offset):
    config = {"timestep_spacing": spacing, "steps_offset": offset}
    theirs, mine = diffusers.DDIMScheduler(**config), MethodScheduler(**config, method="DDIM")
    for steps in [*range(1, 60), 333, 777, 999]:
        theirs.set_timesteps(steps)
        mine.set_timesteps(steps)
        assert mine.timesteps.dtype == torch.int64
        assert len(mine.timesteps) == steps
        assert mine.timesteps.tolist() == theirs.timesteps.tolist()[:steps]  # a rounded quotient can make one more


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_is_diffusers_ddim(to_one, offset, beta_schedule, prediction):
    config = {
        "beta_schedule": beta_schedule, "prediction_type": prediction, "set_alpha_to_one": to_one,
        "steps_offset": offset, "timestep_spacing": "leading",
    }  # fmt: skip
    theirs, x = diffusers.DDIMScheduler(**config, clip_sample=False), noise(2, 3, 4, 4)
    network = lambda x, t: made_up(x, t) / 4  # noqa: E731
    for steps in (5, 20):
        theirs.set_timesteps(steps)
        expected = drive(theirs, network, x)
        found = run(network, x, steps, method="DDIM", **config)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("method", ["DDIM", "F-PNDM", "Heun", "DPM-Solver++3M", "UniPC2-bh2", "DDPM"])
def test_a_last_step_of_no_length_is_a_call_and_changes_nothing(method):
    """With `set_alpha_to_one` off and no offset, diffusers has it too. So n steps have n entries for image to image."""
    scheduler = MethodScheduler(method=method, set_alpha_to_one=False, timestep_spacing="leading")
    x = noise(1, 2, 2, 2)
    for steps in (1, 2, 5):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[-1] == 0
        assert scheduler.num_inference_steps == steps
        y = x
        for t in scheduler.timesteps[:-1]:
            y = scheduler.step(y / 2, t, y, generator=torch.manual_seed(0)).prev_sample
        assert torch.equal(scheduler.step(y / 2, 0, y).prev_sample, y)
    if method == "DDIM":
        assert scheduler.timesteps.tolist() == [800, 600, 400, 200, 0]


@pytest.mark.parametrize("to_one", [True, False])
def test_f_pndm_is_diffusers_pndm_where_definitions_agree(to_one):
    """docs/diffusers.md has the differences, each with its size."""
    config = {"timestep_spacing": "leading", "set_alpha_to_one": to_one, "steps_offset": 0 if to_one else 1}
    network, x = mixture(Schedule(), 3)
    theirs = diffusers.PNDMScheduler(**config)
    theirs.set_timesteps(50)
    mine = MethodScheduler(**config)
    mine.set_timesteps(50)
    assert mine.timesteps.tolist() == theirs.timesteps.tolist()
    torch.testing.assert_close(drive(mine, network, x), drive(theirs, network, x), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_state_is_float32_where_latents_are_less(dtype):
    """All that half precision does is round what the network sees and what comes out."""
    x = noise(2, 3, 4, 4, dtype=torch.float32).to(dtype)

    def rounded(x, t):
        return made_up(x.to(dtype), t.to(dtype))

    expected = last(solve("F-PNDM", lambda x, t: rounded(x, t).float(), x.float(), Schedule(), 50)).x
    found = run(rounded, x, 50, method="F-PNDM")
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


@pytest.mark.parametrize("method", LISTED)
@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_a_run_can_begin_at_every_entry(method, steps):
    """It makes the calls that are listed; and φ carries an ε that is exact exactly."""
    scheduler = MethodScheduler(method=method)
    scheduler.set_timesteps(steps)
    data, eps = noise(2, 3, 2, 2, seed=1), noise(2, 3, 2, 2, seed=2)
    for begin in range(len(scheduler.timesteps)):
        scheduler.set_timesteps(steps)
        assert scheduler.begin_index is None
        assert scheduler.step_index is None
        start = scheduler.add_noise(data, eps, scheduler.timesteps[begin : begin + 1])
        asked = []

        def network(x, t, asked=asked):
            asked.append(t[0].item())
            return eps

        end = drive(scheduler, network, start, begin)
        assert asked == scheduler.timesteps[begin:].tolist()
        assert scheduler.begin_index == begin or begin == 0
        assert scheduler.step_index == len(scheduler.timesteps)
        if method != "FON":
            torch.testing.assert_close(end, data, rtol=0, atol=1e-9)


def test_where_image_to_image_begins_is_in_the_docs():
    page = (ROOT / "docs" / "diffusers.md").read_text()
    for method, name in (("DDIM", "DDIM"), ("S-PNDM", "S-PNDM"), ("F-PNDM", "F-PNDM, FON")):
        scheduler, cells = MethodScheduler(method=method, timestep_spacing="leading", steps_offset=1), []
        scheduler.set_timesteps(50)
        for strength in (0.8, 0.5, 0.3):
            left = scheduler.timesteps[50 - int(50 * strength) :]
            cells.append(f"{left[0]}, {len(left)}")
        assert f"| {name} | {' | '.join(cells)} |" in page.replace("t = ", "").replace(" calls", "")


def test_begun_behind_its_start_f_pndm_is_still_ahead_of_ddim():
    network, x = mixture(Schedule(), 3)
    start = network.flow(x, 999, 660)
    end = network.flow(start, 660, 20)

    def error(method, begin):
        scheduler = MethodScheduler(method=method)
        scheduler.set_timesteps(timesteps=[k * 20 for k in range(49, -1, -1)])
        assert scheduler.timesteps[begin] == 660
        scheduler.set_begin_index(begin)
        y = start
        for t in scheduler.timesteps[begin:-1]:
            y = scheduler.step(network(y, t.double().expand(len(y))), t, y).prev_sample
        return (y - end).square().mean().sqrt().item()

    errors = {method: error(method, 16 + extra) for method, extra in (("DDIM", 0), ("S-PNDM", 1), ("F-PNDM", 9))}
    assert errors["F-PNDM"] < errors["S-PNDM"] < errors["DDIM"] / 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("method", LISTED)
def test_what_a_pipeline_changes_between_steps_stays_changed(method, dtype):
    """Half of the pixels are set before every call, as inpainting does it: the others go on undisturbed."""
    scheduler, eps = MethodScheduler(method=method), noise(2, 3, 2, 4, seed=1)
    mask = torch.arange(4) < 2
    scheduler.set_timesteps(10)
    x = noise(2, 3, 2, 4).to(dtype)
    for t in scheduler.timesteps:
        x = torch.where(mask, x.new_full((), 0.25), x)
        x = scheduler.step(eps.to(dtype), t, x).prev_sample
    scheduler.set_timesteps(10)
    undisturbed = drive(scheduler, lambda x, t: eps.to(dtype), noise(2, 3, 2, 4).to(dtype))
    assert torch.equal(x[..., 2:], undisturbed[..., 2:])
    if method == "DDIM":
        alphas = Schedule().alphas_cumprod
        expected = phi(torch.full_like(x, 0.25).double(), eps.to(dtype).double(), alphas[0], 1.0)
        torch.testing.assert_close(x[..., :2].double(), expected[..., :2], rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["DDIM", "Heun", "DPM-Solver++2M", "UniPC2-bh2", "UniPC3-bh1"])
def test_a_change_of_the_latents_is_carried_on(method):
    """A network that always sees the same image: what is added in the middle shrinks as the noise does, no more."""
    scheduler = MethodScheduler(method=method)
    alphas = Schedule()

    def images(added):
        scheduler.set_timesteps(10)
        x, states = noise(1, 1, 2, 2).double(), []
        for k, t in enumerate(scheduler.timesteps):
            alpha = alphas.alpha_cumprod(float(t))
            x = x + added * (k == 6)
            x = scheduler.step((x - alpha**0.5 * 0.3) / (1 - alpha) ** 0.5, t, x).prev_sample
            states.append(x)
        return states[7]

    assert ((images(5.0) - images(0.0)) > 2).all()


def test_what_is_returned_is_the_callers_own():
    scheduler = MethodScheduler(method="DDIM")
    scheduler.set_timesteps(4)
    x = noise(1, 1, 2, 2)
    kept = []
    for t in scheduler.timesteps:
        x = scheduler.step(x / 2, t, x).prev_sample
        kept.append((x, x.clone()))
        x = x * 0.5
    assert all(torch.equal(now, then) for now, then in kept)


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_settings_of_other_schedulers_are_taken_over(name, caplog):
    shared = {"num_train_timesteps": 500, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = getattr(diffusers, name)(**shared, prediction_type="v_prediction")
    logging.getLogger("diffusers").propagate = True
    with caplog.at_level(logging.WARNING):
        mine = MethodScheduler.from_config(theirs.config, method="S-PNDM")
        getattr(diffusers, name).from_config(mine.config)
    assert not [record for record in caplog.records if "MethodScheduler" in record.message]
    assert {key: mine.config[key] for key in shared} == shared
    assert mine.config.prediction_type == "v_prediction"
    assert mine.config.method == "S-PNDM"
    assert mine.order == 1
    assert mine.init_noise_sigma == 1


def test_saved_and_loaded_it_is_the_same(tmp_path):
    config = STABLE | {"method": "S-PNDM", "trained_betas": np.linspace(1e-4, 0.03, 400), "num_train_timesteps": 400}
    saved = MethodScheduler.from_config(config)
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["method"] == "S-PNDM"
    found = MethodScheduler.from_pretrained(tmp_path)
    x = noise(1, 1, 2, 2)
    for scheduler in (saved, found):
        scheduler.set_timesteps(7)
    assert found.timesteps.tolist() == saved.timesteps.tolist()
    assert torch.equal(drive(found, made_up, x), drive(saved, made_up, x))
    copy.deepcopy(found)  # as pipelines do


@pytest.mark.parametrize("config", [{}, {"_class_name": "DDIMScheduler"}, {"_class_name": "PNDMScheduler"}], ids=str)
def test_a_method_that_chooses_its_calls_is_refused_whatever_it_takes_the_place_of(config):
    with pytest.raises(ValueError, match="method PF chooses its network calls as it goes"):
        MethodScheduler.from_config(config, method="PF")


@pytest.mark.parametrize(
    "config, said",
    [
        ({"method": "PF"}, "method PF chooses its network calls as it goes"),
        ({"method": "PNDM"}, f"method 'PNDM' is not one of {', '.join(METHODS)}"),
        ({"beta_schedule": "odd"}, "beta_schedule 'odd' is not one of linear, scaled_linear, squaredcos_cap_v2, exp"),
        ({"prediction_type": "flow"}, "prediction_type 'flow' is not one of epsilon, v_prediction, sample, flow_pred"),
        ({"timestep_spacing": "odd"}, "timestep_spacing 'odd' is not one of uniform, quad, trailing, logsnr, karras"),
        ({"time_shift_type": "odd"}, "time_shift_type 'odd' is not one of exponential, linear"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps is 10.5, it must be a whole number"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0, it must be at least 1"),
        ({"beta_start": 0.5}, "betas must satisfy"),
        ({"trained_betas": [0.1, 1.5]}, "betas must be one row of numbers 0 < β < 1"),
        ({"rescale_betas_zero_snr": True}, "method F-PNDM cannot start where x is noise alone"),
        ({"prediction_type": "flow_prediction", "method": "Heun"}, "method Heun cannot start where x is noise alone"),
        ({"use_flow_sigmas": True, "method": "FON"}, "These can: DDIM, iPNDM2"),
        ({"whole_timesteps": True, "method": "DPM-Solver-2S"}, "DPM-Solver-2S has calls between whole times"),
        ({"beta_start": "a"}, "beta_start is 'a', it must be a number"),
        ({"snr_shift_scale": 0}, "snr_shift_scale is 0, it must be a number above 0"),
        ({"shift": "3", "use_flow_sigmas": True, "method": "DDIM"}, "shift is '3', it must be a number above 0"),
        ({"shift_terminal": 2}, "shift_terminal is 2, it must be a number above 0 and below 1"),
        ({"method": METHODS["DDIM"]}, "it must be a name; solve and PNDMPipeline take a Method"),
        ({"solver": 5}, "solver is 5, it must be a path, a name, or a mapping"),
    ],
)
def test_settings_that_cannot_be(config, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        MethodScheduler(**config)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"num_inference_steps": 0}, "0 steps cannot be run; a whole number from 1 to 1000 can"),
        ({"num_inference_steps": 1001}, "1001 steps cannot be run"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5, it must be a whole number"),
        ({"num_inference_steps": "ten"}, "num_inference_steps is 'ten', it must be a whole number"),
        ({"timesteps": [10, 20]}, r"must fall from 999 at most to 0 at least.*they are 10, 20"),
        ({"timesteps": [1000, 20]}, "must fall from 999"),
        ({"timesteps": [20, -1]}, "must fall from 999"),
        ({"timesteps": []}, "they are none"),
        ({}, "takes num_inference_steps, timesteps or sigmas"),
        ({"num_inference_steps": 3, "timesteps": [5]}, "num_inference_steps is 3, but 1 steps are given"),
        ({"sigmas": [2, 3]}, r"must fall from 999 at most"),
        ({"sigmas": [1, "x"]}, r"sigmas must be a list of numbers, not \[1, 'x'\]"),
        ({"sigmas": [200.0, 1.0]}, r"sigmas must be numbers above 0, 157.* at most, not \[200.0, 1.0\]"),
        ({"sigmas": [0.0]}, "sigmas must be numbers above 0"),
        ({"sigmas": [3.0, 1.0, 0.5], "timesteps": [5.0, 4.0, 3.0]}, "3 timesteps are given for 9 sigmas"),
    ],
)
def test_steps_that_cannot_be(arguments, said):
    with pytest.raises(ValueError, match=said):
        MethodScheduler().set_timesteps(**arguments)


def test_an_offset_beyond_the_last_training_step():
    with pytest.raises(ValueError, match=r"must fall from 999 at most.*they are 1000, 999"):
        MethodScheduler(steps_offset=1).set_timesteps(1000)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model_output": torch.zeros(2, 3, 4, 5)}, r"model_output is \(2, 3, 4, 5\) for a sample \(2, 3, 4, 4\)"),
        ({"model_output": torch.zeros(2, 3, 4, 4).long()}, "model_output is torch.int64"),
        ({"model_output": 1.0}, "model_output is float, it must be a tensor"),
        ({"sample": [1.0]}, "sample is list, it must be a tensor"),
        ({"sample": torch.zeros(())}, r"for a sample \(\)"),
        ({"timestep": 500}, "t = 500 is not in timesteps"),
        ({"eta": 1.5}, "eta is 1.5, it must be a number from 0 to 1"),
        ({"use_clipped_model_output": True}, "use_clipped_model_output must be off"),
    ],
)
def test_steps_out_of_turn_or_shape(change, said):
    scheduler, x = MethodScheduler(method="DDIM"), torch.zeros(2, 3, 4, 4)
    arguments = {"model_output": x, "timestep": 800, "sample": x}
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(**arguments)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match=said):
        scheduler.step(**arguments | change)
    for t in scheduler.timesteps:
        x, _ = scheduler.step(x, t, x, return_dict=False)
    with pytest.raises(ValueError, match="all 5 network calls of the run are done; set_timesteps begins another"):
        scheduler.step(x, 0, x)
    scheduler.set_timesteps(5)
    scheduler.step(x, 800, x)
    with pytest.raises(ValueError, match="step is called for t = 200, but the next of timesteps is 600"):
        scheduler.step(x, 200, x)
    with pytest.raises(ValueError, match=r"sample is \(1, 3, 4, 4\), the run began with \(2, 3, 4, 4\)"):
        scheduler.step(x[:1], 600, x[:1])
    with pytest.raises(ValueError, match=r"timesteps must be in 0 … 999, not 3 … 1000"):
        scheduler.add_noise(x, x, torch.tensor([3, 1000]))


def test_without_diffusers_one_line_says_what_to_install(monkeypatch):
    import pndm

    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers" or name == "pndm.scheduler"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"^MethodScheduler needs diffusers, .* pip install diffusers$"):
        pndm.MethodScheduler  # noqa: B018
    assert pndm.PNDMPipeline.from_pretrained("digits.yml")(2, 3, output_type="pt").images.shape == (2, 1, 8, 8)


PROMPTS = {
    "prompt_embeds": noise(2, 5, 16, dtype=torch.float32), "guidance_scale": 4.0, "output_type": "latent",
    "negative_prompt_embeds": noise(2, 5, 16, dtype=torch.float32, seed=1),
}  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=[32], layers_per_block=1, latent_channels=4, sample_size=16,
        down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"],
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def stable(vae):
    """The parts of a Stable Diffusion pipeline, prompts given as embeddings."""
    pytest.importorskip("transformers", reason="diffusers' Stable Diffusion needs transformers")
    torch.manual_seed(2)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    scheduler = diffusers.PNDMScheduler(**STABLE)
    return absent | {"vae": vae, "unet": unet, "scheduler": scheduler, "requires_safety_checker": False}


class TestPipelines:
    """Small pipelines with random weights, against `solve` on the network that the pipeline makes of its parts."""

    @staticmethod
    def quiet(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline"])
    @pytest.mark.parametrize("method", LISTED)
    def test_images(self, kind, method, unet):
        pipeline = self.quiet(getattr(diffusers, kind)(unet, diffusers.DDIMScheduler()))
        pipeline.scheduler = MethodScheduler.from_config(
            pipeline.scheduler.config, method=method, timestep_spacing="uniform"
        )
        found = pipeline(batch_size=2, num_inference_steps=12, output_type="np", generator=torch.manual_seed(3)).images
        x = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(3))
        with torch.no_grad():
            state = last(solve(method, lambda x, t: unet(x, t).sample, x, Schedule(), 12))
        expected = (state.x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert expected.std() > 0

    def test_a_saved_pipeline_has_its_scheduler_again(self, unet, tmp_path):
        """Equal bytes are promised of one network in one place in memory, with either scheduler. The loaded weights are
        equal, but their file is mapped into memory as it lies: at other alignments kernels sum in another order."""
        pipeline = self.quiet(diffusers.DDPMPipeline(unet, MethodScheduler(method="S-PNDM")))
        pipeline.save_pretrained(tmp_path)
        loaded = self.quiet(diffusers.DDPMPipeline.from_pretrained(tmp_path))
        assert type(loaded.scheduler) is MethodScheduler
        for name, weight in unet.state_dict().items():
            assert torch.equal(loaded.unet.state_dict()[name], weight), name
        restored = self.quiet(diffusers.DDPMPipeline(unet, loaded.scheduler))
        before, same, close = (
            p(num_inference_steps=4, output_type="np", generator=torch.manual_seed(0)).images
            for p in (pipeline, restored, loaded)
        )
        np.testing.assert_array_equal(same, before)
        np.testing.assert_allclose(close, before, rtol=0, atol=1e-5)

    def guided(self, unet, x, t):
        prompts = torch.cat([PROMPTS["negative_prompt_embeds"], PROMPTS["prompt_embeds"]])
        plain, prompted = unet(torch.cat([x, x]), t[0], encoder_hidden_states=prompts).sample.chunk(2)
        return plain + 4.0 * (prompted - plain)

    @pytest.mark.slow
    @pytest.mark.parametrize("method", LISTED)
    def test_stable_diffusion_with_guidance(self, method, stable):
        pipeline = self.quiet(diffusers.StableDiffusionPipeline(**stable))
        pipeline.scheduler = scheduler = MethodScheduler.from_config(pipeline.scheduler.config, method=method)
        assert scheduler.config.steps_offset == 1
        found = pipeline(num_inference_steps=10, generator=torch.manual_seed(0), **PROMPTS).images
        assert scheduler.timesteps[0] == 901
        assert len(scheduler.timesteps) == 10 + {"DDIM": 0, "S-PNDM": 1}.get(method, 9)
        x = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(0))
        scheduler.set_timesteps(10)
        with torch.no_grad():
            expected = drive(scheduler, lambda x, t: self.guided(stable["unet"], x, t), x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
    @pytest.mark.parametrize("method", LISTED)
    def test_image_to_image_and_inpainting(self, kind, method, stable):
        parts = dict(stable)
        parts["scheduler"] = MethodScheduler.from_config(stable["scheduler"].config, method=method)
        pipeline = self.quiet(getattr(diffusers, kind)(**parts))
        image = {"image": torch.rand(1, 3, 16, 16, generator=torch.manual_seed(5))}
        if "Inpaint" in kind:
            image |= {"mask_image": torch.ones(1, 1, 16, 16), "height": 16, "width": 16}
        for strength in (1.0, 0.3):
            asked = []
            hook = stable["unet"].register_forward_pre_hook(lambda _, given, asked=asked: asked.append(given[1].item()))
            out = pipeline(strength=strength, num_inference_steps=8, generator=torch.manual_seed(0), **image, **PROMPTS)
            hook.remove()
            first = 8 - int(8 * strength)
            assert asked == pipeline.scheduler.timesteps[first:].tolist()
            assert out.images.isfinite().all()

    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    def test_dit(self, guidance, vae):
        torch.manual_seed(3)
        transformer = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=16,
        ).eval()  # fmt: skip
        pipeline = self.quiet(diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler()))
        pipeline.scheduler = MethodScheduler.from_config(pipeline.scheduler.config, timestep_spacing="uniform")
        options = {"num_inference_steps": 6, "guidance_scale": guidance, "output_type": "np"}
        found = pipeline([7, 9], generator=torch.manual_seed(0), **options).images

        def network(x, t):
            ask = lambda labels: transformer(x, t, torch.tensor(labels)).sample[:, :4]  # noqa: E731
            plain, labelled = ask([1000, 1000]), ask([7, 9])
            return plain + guidance * (labelled - plain)

        x = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(0))
        with torch.no_grad():
            state = last(solve("F-PNDM", network, x, Schedule(), 6))
            images = vae.decode(state.x / vae.config.scaling_factor).sample
        expected = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        assert math.isfinite(expected.std())
        assert expected.std() > 0


def test_a_run_stands_where_a_new_one_cannot_begin():
    x = noise(2, 3, 4, 4)
    whole = run(made_up, x, 4, method="F-PNDM")
    scheduler = MethodScheduler(method="F-PNDM")
    scheduler.set_timesteps(4)
    for wrong in ({"timesteps": [900, 600, 300, 0], "sigmas": [9.0, 5.0, 2.0, 1.0, 0.5]}, {"timesteps": [1, 2]}):
        with pytest.raises(ValueError):
            scheduler.set_timesteps(**wrong)
    assert torch.equal(drive(scheduler, made_up, x), whole)


def test_a_start_without_signal_is_refused_as_often_as_it_is_tried():
    scheduler = MethodScheduler(method="DDIM", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    for _ in range(2):
        with pytest.raises(ValueError, match="prediction_type epsilon says nothing"):
            scheduler.step(noise(1, 3, 4, 4), scheduler.timesteps[0], noise(1, 3, 4, 4))


@pytest.mark.parametrize(
    "images, times, said",
    [
        (torch.ones(1, 3, 4, 4, dtype=torch.int64), [5], "they must be of floating-point numbers"),
        (torch.ones(2, 3, 4, 4), [5, 6, 7], "3 timesteps are given for 2 images"),
        (torch.ones(2, 3, 4, 4), "a", "they must be numbers"),
    ],
)
def test_noise_is_added_to_images_at_times(images, times, said):
    with pytest.raises(ValueError, match=said):
        MethodScheduler().add_noise(images, torch.ones(images.shape), times)
