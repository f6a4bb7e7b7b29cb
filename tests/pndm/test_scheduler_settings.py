"""`MethodScheduler` with the settings of diffusers' other schedulers, and what every scheduler of diffusers must do."""

import copy
import json
import pickle

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules
from helpers import made_up, scheduler_of

from pndm.config.errors import InputError
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.run import Span
from pndm.runner.solver.schedule import Schedule
from pndm.scheduler import MethodScheduler
from pndm.times import one_call

ABLE = [name for name, line in METHODS.items() if not line.adaptive]
STAGED = [name for name in ABLE if not one_call(name)]
ONE_CALL = [name for name in ABLE if name not in STAGED]


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drive(scheduler, x, times=None, network=made_up, generator=None, **more):
    generator = generator or torch.Generator().manual_seed(7)
    for t in scheduler.timesteps if times is None else times:
        output = network(x, t.to(x.dtype).expand(len(x)))
        x = scheduler.step(output, t, x, generator=generator, **more).prev_sample
    return x


def begun(steps=10, **config):
    scheduler = MethodScheduler(**config)
    scheduler.set_timesteps(steps)
    return scheduler


class TestEveryScheduler:
    """The expectations of diffusers' common suite."""

    @pytest.mark.parametrize("method", ABLE)
    @pytest.mark.parametrize("config", [{}, {"timestep_spacing": "leading", "beta_schedule": "scaled_linear"}])
    def test_saved_and_loaded_it_goes_on_alike(self, method, config, tmp_path):
        scheduler = MethodScheduler(method=method, **config)
        scheduler.save_pretrained(tmp_path)
        loaded = MethodScheduler.from_pretrained(tmp_path)
        for one in (scheduler, loaded):
            one.set_timesteps(7)
        x = noise(2, 3, 4, 4)
        assert torch.equal(drive(scheduler, x), drive(loaded, x))
        saved = json.loads((tmp_path / "scheduler_config.json").read_text())
        assert {key: saved[key] for key in config} == config

    @pytest.mark.parametrize("method", ABLE)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_shapes_types_and_both_forms_of_output(self, method, dtype):
        x = noise(4, 3, 8, 8).to(dtype)
        scheduler = begun(method=method)
        first = scheduler.step(0.1 * x, scheduler.timesteps[0], x, generator=torch.manual_seed(0))
        again = begun(method=method).step(
            0.1 * x, scheduler.timesteps[0], x, generator=torch.manual_seed(0), return_dict=False
        )
        for found, other in zip(first.to_tuple(), again, strict=True):
            assert torch.equal(found, other)
            assert (found.shape, found.dtype) == (x.shape, x.dtype)

    @pytest.mark.parametrize("method", ABLE)
    def test_what_pipelines_use(self, method):
        scheduler = begun(method=method)
        x = noise(4, 3, 8, 8)
        assert scheduler.init_noise_sigma == 1
        assert scheduler.order == 1
        assert scheduler.scale_model_input(x, scheduler.timesteps[-1]) is x
        assert scheduler.add_noise(x, x, scheduler.timesteps[5][None]).shape == x.shape
        assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1

    @pytest.mark.parametrize("steps", [1, 3, 7, 999])
    def test_every_number_of_steps(self, steps):
        scheduler = begun(steps, method="DPM-Solver++2M")
        assert drive(scheduler, noise(1, 1, 2, 2), network=lambda x, t: x / 2).isfinite().all()

    def test_betas_that_were_trained(self, tmp_path):
        scheduler = MethodScheduler(trained_betas=np.array([0.1, 0.3]))
        scheduler.save_pretrained(tmp_path)
        assert scheduler.betas.tolist() == MethodScheduler.from_pretrained(tmp_path).betas.tolist()

    def test_attributes(self):
        scheduler = MethodScheduler()
        scheduler.own = 5
        assert scheduler.own == 5
        with pytest.raises(AttributeError, match="'MethodScheduler' object has no attribute 'absent'"):
            scheduler.absent  # noqa: B018


@pytest.mark.parametrize("method", ABLE)
def test_a_run_begins_where_a_slice_of_its_times_does(method):
    """Without `set_begin_index`, and also between two equal times: a tensor out of the loop tells its place."""
    scheduler, x = MethodScheduler(method=method), noise(2, 3, 2, 2)
    scheduler.set_timesteps(10)
    for begin in range(len(scheduler.timesteps)):
        scheduler.set_timesteps(10)
        found = drive(scheduler, x, scheduler.timesteps[begin:])
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(begin)
        assert torch.equal(found, drive(scheduler, x, scheduler.timesteps[begin:]))
        assert scheduler.step_index == len(scheduler.timesteps)


def test_a_number_that_is_there_twice_is_the_later_entry():
    scheduler = begun(method="S-PNDM")
    assert scheduler.timesteps[:3].tolist() == [900, 800, 800]
    assert scheduler.index_for_timestep(800) == 2
    assert scheduler.index_for_timestep(scheduler.timesteps[1]) == 1


@pytest.mark.parametrize("method", ABLE)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scheduler: pickle.loads(pickle.dumps(scheduler))])
def test_it_can_be_copied_at_any_call(method, copied):
    scheduler, x = begun(method=method), noise(2, 3, 2, 2)
    expected = drive(scheduler, x)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(7)
    for t in scheduler.timesteps:
        left = scheduler
        scheduler = copied(left)
        output = made_up(x, t.to(x.dtype).expand(2))
        with torch.no_grad():
            left.step(output + 1, t, x, generator=torch.manual_seed(1))  # what one copy does is nothing to the other
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    assert torch.equal(x, expected)


def test_its_state_can_be_put_back():
    """StableDiffusionPanoramaPipeline keeps `__dict__` of every view, and puts it back before the view's next step."""
    scheduler, views = begun(method="F-PNDM"), [noise(1, 3, 2, 2, seed=k) for k in range(3)]
    expected = []
    for x in views:
        scheduler.set_timesteps(10)
        expected.append(drive(scheduler, x))
    scheduler.set_timesteps(10)
    kept = [copy.deepcopy(scheduler.__dict__)] * 3
    for t in scheduler.timesteps:
        for k, x in enumerate(views):
            scheduler.__dict__.update(kept[k])
            views[k] = scheduler.step(made_up(x, t.to(x.dtype).expand(1)), t, x).prev_sample
            kept[k] = copy.deepcopy(scheduler.__dict__)
    assert all(torch.equal(x, y) for x, y in zip(views, expected, strict=True))


@pytest.mark.parametrize("method", ABLE)
@pytest.mark.parametrize("config", [{}, {"timestep_spacing": "leading", "set_alpha_to_one": False}])
def test_its_own_times_fed_back_are_the_same_run(method, config):
    x = noise(2, 3, 2, 2)
    for steps in (1, 2, 3, 10):
        first, second = begun(steps, method=method, **config), MethodScheduler(method=method, **config)
        second.set_timesteps(timesteps=first.timesteps)
        torch.testing.assert_close(second.timesteps, first.timesteps, rtol=0, atol=1e-4)
        assert second.num_inference_steps == steps
        torch.testing.assert_close(drive(second, x), drive(first, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["F-PNDM", "FON", "Heun"])
def test_steps_too_many_for_whole_stages_keep_their_times(method):
    """diffusers' pipelines take 1,000 steps by default. A stage in the middle of a step of 1 has no whole time."""
    taken = MethodScheduler.from_config(diffusers.DDPMScheduler().config, method=method)
    own = begun(1000, method=method)
    for steps in (600, 999, 1000):
        taken.set_timesteps(steps)
        assert taken.num_inference_steps == steps
    torch.testing.assert_close(taken.timesteps.to(own.timesteps.dtype), own.timesteps)


def test_sigmas_of_a_new_scheduler_are_those_of_all_training_steps():
    scheduler = MethodScheduler()
    levels = Schedule().alphas_cumprod[::-1].copy()
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), torch.from_numpy((1 / levels - 1) ** 0.5))
    assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1 and scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("method", ["DDIM", "S-PNDM", "F-PNDM", "FON", "Heun"])
@pytest.mark.parametrize("spacing", ["uniform", "leading", "trailing", "linspace", "karras", "logsnr", "quad"])
@pytest.mark.parametrize("to_one", [True, False])
def test_whole_times(method, spacing, to_one):
    for steps in (1, 2, 3, 7, 30):
        try:
            scheduler = begun(
                steps, method=method, timestep_spacing=spacing, whole_timesteps=True, set_alpha_to_one=to_one
            )
        except ValueError as error:
            assert spacing in ("karras", "logsnr", "quad")  # two steps in one training step
            assert f"{method} has no {steps} steps at whole times" in str(error)
            continue
        assert scheduler.timesteps.dtype == torch.int64
        real = begun(steps, method=method, timestep_spacing=spacing, set_alpha_to_one=to_one).timesteps
        assert (scheduler.timesteps - real).abs().max() <= 1.5


@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_whole_times_are_taken_from_those_who_have_them(kind):
    """Whatever other settings the configuration has been through."""
    scheduler = getattr(diffusers, kind)()
    changes = [{}, {"method": "DPM-Solver-2S"}, {"method": "DDIM"}, {"timestep_spacing": "uniform"}]
    changes += [{"timestep_spacing": "leading"}, {"use_karras_sigmas": True}]
    for settings, whole in zip(changes, [True, False, True, False, True, False], strict=True):
        scheduler = MethodScheduler.from_config(scheduler.config, **settings)
        scheduler.set_timesteps(7)
        assert (scheduler.timesteps.dtype == torch.int64) == whole


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_is_that_of_ddim(eta):
    config = {"timestep_spacing": "leading", "steps_offset": 1}
    theirs, mine = diffusers.DDIMScheduler(**config, clip_sample=False), MethodScheduler(**config, method="DDIM")
    x = noise(2, 3, 4, 4)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(20)
    expected = drive(theirs, x, eta=eta)
    torch.testing.assert_close(drive(mine, x, eta=eta), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    with pytest.raises(ValueError, match=r"eta is 0.5, but method F-PNDM has none; these do: DDIM$"):
        begun().step(x, 900, x, eta=0.5)


@pytest.mark.parametrize("kind, name", [("DDPM", "sigmoid"), ("DDPM", "laplace"), ("HeunDiscrete", "exp")])
def test_other_betas(kind, name):
    try:
        theirs = getattr(diffusers, f"{kind}Scheduler")(beta_schedule=name)
    except NotImplementedError as error:
        pytest.skip(f"this release of diffusers: {error}")
    mine = MethodScheduler.from_config(theirs.config)
    torch.testing.assert_close(mine.betas, theirs.betas, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
@pytest.mark.parametrize("method", ONE_CALL)
def test_without_signal_at_the_end(method, spacing):
    """ᾱ of the first call is 0: v of it is all that is known of the image."""
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": spacing}
    theirs, mine = diffusers.DDIMScheduler(**config, clip_sample=False), MethodScheduler(**config, method=method)
    torch.testing.assert_close(mine.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)
    x = noise(2, 3, 4, 4)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
    found, network = drive(mine, x, network=lambda x, t: made_up(x, t) / 2), lambda x, t: made_up(x, t) / 2
    if method == "DDIM" and spacing != "linspace":  # there diffusers steps by N // n, whatever the times
        torch.testing.assert_close(found, drive(theirs, x, network=network), rtol=1e-4, atol=1e-4)
    assert found.abs().max() < 20


def test_noise_levels_of_cogvideox():
    theirs = diffusers.CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear", snr_shift_scale=3.0, rescale_betas_zero_snr=True, timestep_spacing="trailing",
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip
    mine = MethodScheduler.from_config(theirs.config, method="DDIM")
    torch.testing.assert_close(mine.alphas_cumprod.double(), theirs.alphas_cumprod.double(), rtol=1e-3, atol=1e-6)
    x = noise(2, 3, 4, 4)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
    expected = x
    for t in theirs.timesteps:
        expected = theirs.step(made_up(expected, t.double().expand(2)) / 2, t, expected, return_dict=False)[0]
    found = drive(mine, x, network=lambda x, t: made_up(x, t) / 2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [5, 20])
def test_sigmas(steps):
    theirs = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)
    mine = MethodScheduler.from_config(theirs.config, method="DDIM")
    assert mine.config.use_karras_sigmas
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(steps)
    torch.testing.assert_close(mine.sigmas, theirs.sigmas, rtol=1e-3, atol=1e-5)
    again = MethodScheduler(method="DDIM")
    again.set_timesteps(sigmas=mine.sigmas.tolist())
    torch.testing.assert_close(again.timesteps, mine.timesteps, rtol=1e-4, atol=1e-2)
    exponential = MethodScheduler(method="DDIM", use_exponential_sigmas=True)
    exponential.set_timesteps(steps)
    ratios = exponential.sigmas[1:-1] / exponential.sigmas[:-2]
    torch.testing.assert_close(ratios, ratios[:1].expand(len(ratios)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", ["DDIM", "F-PNDM", "DPM-Solver++2M"])
def test_sigmas_of_align_your_steps(method):
    scheduler = MethodScheduler(method=method, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(sigmas=AysSchedules["StableDiffusionSigmas"])
    assert scheduler.num_inference_steps == 10
    assert abs(scheduler.timesteps[0] - 999) < 0.5
    told = AysSchedules["StableDiffusionTimesteps"]
    if method == "DDIM":
        assert max(abs(t - s) for t, s in zip(scheduler.timesteps.tolist(), told, strict=True)) < 2


def test_predicted_image_and_velocity():
    theirs, mine = (
        diffusers.DDIMScheduler(clip_sample=False),
        MethodScheduler(method="DDIM", timestep_spacing="leading"),
    )
    x, eps = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
    for t in mine.timesteps:
        found, expected = (s.step(made_up(x, t.double().expand(2)), t, x) for s in (mine, theirs))
        torch.testing.assert_close(found.pred_original_sample, expected.pred_original_sample, rtol=1e-3, atol=1e-3)
        x = found.prev_sample
    times = torch.tensor([3, 700])
    expected = diffusers.DDPMScheduler().get_velocity(x, eps, times)
    torch.testing.assert_close(mine.get_velocity(x, eps, times), expected, rtol=1e-3, atol=1e-4)


def test_what_a_source_leaves_to_its_class():
    stated = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear"}
    found = MethodScheduler.from_config(stated).config
    assert (found.timestep_spacing, found.set_alpha_to_one, found.steps_offset) == ("leading", False, 0)
    loaded = MethodScheduler.from_config({"_class_name": "EulerDiscreteScheduler"}).config
    assert (loaded.timestep_spacing, loaded.set_alpha_to_one) == ("linspace", True)
    ends = MethodScheduler.from_config(diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min").config)
    assert not ends.config.set_alpha_to_one
    patched = dict(diffusers.DDIMScheduler().config) | {"steps_offset": 1}  # as pipelines of Stable Diffusion do it
    assert MethodScheduler.from_config(patched).config.steps_offset == 1
    own = MethodScheduler(timestep_spacing="karras", method="DDIM").config
    assert MethodScheduler.from_config(own).config.timestep_spacing == "karras"
    hand_written = MethodScheduler.from_config({"num_train_timesteps": 1000, "timestep_spacing": "trailing"})
    assert not hand_written.config.whole_timesteps  # no class is said, though some are there without arguments
    of_2022 = {"_class_name": "DDPMScheduler", "predict_epsilon": False}
    assert MethodScheduler.from_config(of_2022).config.prediction_type == "sample"
    stated = of_2022 | {"prediction_type": "v_prediction"}
    assert MethodScheduler.from_config(stated).config.prediction_type == "v_prediction"
    assert MethodScheduler.from_config({"_class_name": "Mine", "method": "DDIM"}).config.method == "DDIM"
    assert MethodScheduler.from_config({"beta_end": 0.03}).schedule.betas[-1] == Schedule(beta_end=0.03).betas[-1]


@pytest.mark.parametrize(
    "source, settings, said",
    [
        ("EDMEulerScheduler", {}, "a network of EDMEulerScheduler: its network is made for"),
        ({"_class_name": "DDPMWuerstchenScheduler"}, {}, "its times run from 1 to 0"),
        ("CMStochasticIterativeScheduler", {}, "jumps from any time to the image"),
        ("SCMScheduler", {}, "a network of SCMScheduler: known are "),
        ("DDIMInverseScheduler", {}, "a network of DDIMInverseScheduler: known are "),
        ("LCMScheduler", {}, "jumps from any time to the image"),
        ({"_class_name": "VQDiffusionScheduler"}, {}, "known are CogVideoXDDIMScheduler, "),
        ({"_class_name": "RectifiedScheduler", "sigma_data": 0.5}, {}, "network of RectifiedScheduler: known are "),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, "use_beta_sigmas is True"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas is True"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "sigma_min": 0.03}, "sigma_min is 0.03"),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type is 'log_linear'"),
        (
            "DPMSolverMultistepScheduler",
            {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
            "lambda_min_clipped is -5.1 in the configuration of DPMSolverMultistepScheduler: set_timesteps takes times",
        ),
    ],
)
def test_sources_that_make_no_sense(source, settings, said):
    config = source if isinstance(source, dict) else scheduler_of(source, **settings).config
    with pytest.raises(InputError, match=said):
        MethodScheduler.from_config(config, method="DDIM")


class TestSettingsOnTop:
    def test_in_the_words_of_the_source(self):
        flow = scheduler_of("UniPCMultistepScheduler", use_flow_sigmas=True, flow_shift=3.0).config
        for config in (flow, MethodScheduler.from_config(flow, method="DDIM").config):
            assert MethodScheduler.from_config(config, method="DDIM").config.shift == 3.0
            assert MethodScheduler.from_config(config, method="DDIM", flow_shift=5.0).config.shift == 5.0
            assert MethodScheduler.from_config(config, method="DDIM", shift=2.0).config.shift == 2.0
        plain = diffusers.UniPCMultistepScheduler().config
        told = MethodScheduler.from_config(plain, method="DDIM", use_flow_sigmas=True, flow_shift=4.0)
        assert told.flow and told.config.shift == 4.0
        assert not MethodScheduler.from_config(plain, final_sigmas_type="sigma_min").config.set_alpha_to_one

    @pytest.mark.parametrize("more, said", [({"use_lu_lambdas": True}, "use_lu_lambdas"), ({"methd": "DDIM"}, "methd")])
    @pytest.mark.parametrize("own", [True, False])
    def test_what_cannot_be_followed_is_refused(self, own, more, said):
        config = (MethodScheduler() if own else diffusers.UniPCMultistepScheduler()).config
        with pytest.raises(InputError, match=said):
            MethodScheduler.from_config(config, **more)

    @pytest.mark.parametrize(
        "more", [{"thresholding": True}, {"algorithm_type": "sde-dpmsolver++"}, {"solver_order": 3}]
    )
    def test_of_a_source_they_are_followed_or_refused(self, more):
        config = diffusers.DPMSolverMultistepScheduler().config
        (key,) = more
        with pytest.raises(InputError, match=f"^{key} is .*; no method here follows this setting of DPMSolverMulti"):
            MethodScheduler.from_config(config, **more)
        MethodScheduler.from_config(config, **{key: config[key]})
        MethodScheduler.from_config(diffusers.DDPMScheduler().config, clip_sample=False)  # there is no clipping here

    def test_arguments_of_loading_are_none_of_its_settings(self):
        assert (
            MethodScheduler.from_config(MethodScheduler().config, torch_dtype=torch.float16).config.method == "F-PNDM"
        )


@pytest.mark.parametrize("name", ["DEISMultistepScheduler", "SASolverScheduler"])
def test_sources_that_end_at_noise(name):
    theirs = scheduler_of(name)
    mine = MethodScheduler.from_config(theirs.config)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
    torch.testing.assert_close(mine.sigmas[-1], theirs.sigmas[-1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["UnCLIPScheduler", "RePaintScheduler"])
def test_sources_without_a_setting_for_their_times(name):
    theirs = scheduler_of(name)
    mine = MethodScheduler.from_config(theirs.config, method="DDIM")
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
    assert mine.timesteps.tolist() == theirs.timesteps.tolist()


class TestNothingLeftAtTheEnd:
    """rescale_betas_zero_snr."""

    @pytest.mark.parametrize("spacing", ["karras", "logsnr"])
    def test_equal_steps_of_noise_begin_where_there_is_signal(self, spacing):
        config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": spacing}
        scheduler = MethodScheduler(**config, method="DPM-Solver++2M")
        scheduler.set_timesteps(20)
        assert scheduler.sigmas[0] == pytest.approx(4096, rel=1e-3)
        assert (scheduler.timesteps < 900).sum() >= 10

    def test_epsilon_is_no_use_there(self):
        scheduler = MethodScheduler(rescale_betas_zero_snr=True, method="DDIM", timestep_spacing="trailing")
        scheduler.set_timesteps(10)
        x = noise(2, 3, 4, 4)
        with pytest.raises(ValueError, match=r"^prediction_type epsilon says nothing of the image at t = 999"):
            scheduler.step(x, 999, x)
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(5)  # image to image
        assert scheduler.step(x, scheduler.timesteps[5], x).prev_sample.isfinite().all()


class TestToldTimes:
    """Noise levels, and times that the network is told."""

    def test_noise_is_that_of_the_levels(self):
        scheduler = MethodScheduler(method="DDIM")
        scheduler.set_timesteps(sigmas=[10, 3, 1, 0.1], timesteps=[999, 700, 400, 100])
        one = torch.ones(1, 1)
        found = scheduler.add_noise(0 * one, one, scheduler.timesteps[1:2])
        assert found.item() == pytest.approx(3 / 10**0.5, rel=1e-4)

    @pytest.mark.parametrize("times", [[5000, -3], [100, 900]])
    def test_they_fall_in_the_range(self, times):
        with pytest.raises(ValueError, match="timesteps must fall from 999 at most"):
            MethodScheduler(method="DDIM").set_timesteps(sigmas=[2, 1], timesteps=times)


def test_a_step_that_failed_can_be_repeated():
    x, scheduler = noise(3, 1, 4, 4), begun(method="DDIM")
    twins = [torch.Generator().manual_seed(i) for i in range(3)]
    with pytest.raises(ValueError, match=r"^generator has 2 for 3 images$"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=0.5, generator=twins[:2])
    found = scheduler.step(x, scheduler.timesteps[0], x, eta=0.5, generator=twins).prev_sample
    twins = [torch.Generator().manual_seed(i) for i in range(3)]
    fresh = begun(method="DDIM")
    assert torch.equal(fresh.step(x, fresh.timesteps[0], x, eta=0.5, generator=twins).prev_sample, found)


@pytest.mark.parametrize("index", [-1, 10, 1.5, "a"])
def test_where_a_run_cannot_begin(index):
    with pytest.raises(ValueError, match=r"^begin_index is "):
        begun(method="DDIM").set_begin_index(index)


def test_a_timestep_is_a_number():
    x = noise(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"^timestep is None, it must be a number$"):
        begun().step(x, None, x)


def test_many_times_of_ones_own_are_taken_quickly(monkeypatch):
    """The steps that a list of calls may stand for are found by bisection, not by trying all numbers."""
    scheduler, runs, calls = begun(250, method="F-PNDM"), [], Span.calls
    listed = scheduler.timesteps.tolist()
    monkeypatch.setattr(Span, "calls", lambda span, schedule: runs.append(span) or calls(span, schedule))
    scheduler.set_timesteps(timesteps=listed)
    assert scheduler.num_inference_steps == 250 and scheduler.timesteps.tolist() == listed
    scheduler.set_timesteps(timesteps=range(900, 500, -1))
    assert scheduler.num_inference_steps == 400
    assert len(runs) < 40
