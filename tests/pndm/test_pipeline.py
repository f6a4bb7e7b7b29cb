"""`PNDMPipeline`: the command line's images from Python, and what it reads of a network's training."""

import json

import diffusers
import numpy as np
import pytest
import torch
from helpers import last

from pndm.config.errors import InputError
from pndm.config.load import load
from pndm.dataset import decode
from pndm.model import checkpoint, load_model
from pndm.model.engine import Engine
from pndm.pipeline import PNDMPipeline
from pndm.runner.folder import read_image
from pndm.runner.random import noise
from pndm.runner.solver.events import NotFinite
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import solve


@pytest.fixture(scope="module")
def pipeline(tiny):
    return PNDMPipeline.from_pretrained(tiny.config)


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_images_are_those_of_solve(method, pipeline, tiny):
    found = pipeline(3, 7, seeded(5), "pt", method=method).images
    generator = seeded(5)
    x, draw = torch.randn(3, 1, 8, 8, generator=generator), lambda step: torch.randn(x.shape, generator=generator)
    network = Engine(load_model(load(str(tiny.config)).Model, tiny.model), torch.device("cpu"))
    with torch.no_grad():
        state = last(solve(method, network, x, Schedule(), 7, noise=draw))
    assert torch.equal(found, ((state.x + 1) / 2).clamp(0, 1))
    assert found.std() > 0


def test_from_the_same_noise_they_are_the_command_lines_bytes(pipeline, tiny, cli, tmp_path, monkeypatch):
    cli(*tiny.flags(tmp_path / "run", "--total_num", 4, "--precision", "fp32"))
    monkeypatch.setattr(pipeline, "_draw", lambda n, generator: torch.from_numpy(noise(0, range(n), (1, 8, 8))))
    for i, image in enumerate(pipeline(4, 4).images):
        assert np.array_equal(np.asarray(image), read_image(tmp_path / "run" / f"{i:06d}.png")[0])


def test_output_types(pipeline):
    pil, array, tensor = (pipeline(2, 5, seeded(0), kind).images for kind in ("pil", "np", "pt"))
    assert array.shape == (2, 8, 8, 1)
    assert tensor.shape == (2, 1, 8, 8)
    assert array.min() >= 0
    assert array.max() <= 1
    np.testing.assert_array_equal(array.transpose(0, 3, 1, 2), tensor)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in pil]), (array[..., 0] * 255).round())
    (alone,) = pipeline(2, 5, seeded(0), "np", return_dict=False)
    np.testing.assert_array_equal(alone, array)


def test_a_list_of_generators_gives_each_image_its_own_noise(pipeline):
    together = pipeline(3, 5, seeded(4, 5, 6), "pt").images
    for image, seed in zip(together, (4, 5, 6), strict=True):
        torch.testing.assert_close(pipeline(1, 5, seeded(seed), "pt").images[0], image, rtol=0, atol=1e-5)
    assert not torch.equal(together[0], together[1])


def test_without_a_generator_noise_is_pytorchs(pipeline):
    torch.manual_seed(1)
    first, second = pipeline(1, 3, output_type="pt").images, pipeline(1, 3, output_type="pt").images
    assert not torch.equal(first, second)
    assert torch.equal(pipeline(1, 3, torch.manual_seed(1), "pt").images, first)


def test_callback_and_options_of_solve(pipeline):
    seen = []
    published = pipeline(
        2, 4, seeded(0), "pt", callback=lambda step, t, x: seen.append((step, t, x.shape)), profile="published"
    )
    assert seen == [(i, t, (2, 1, 8, 8)) for i, t in enumerate([500, 250, 0, -1])]
    assert not torch.equal(published.images, pipeline(2, 4, seeded(0), "pt").images)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"method": "PNDM"}, "method 'PNDM' is not one of DDIM, S-PNDM, F-PNDM, FON, PF"),
        ({"num_inference_steps": 0}, "0 steps cannot be run; a whole number from 1 to 1000 can"),
        ({"num_inference_steps": 2.5}, "^num_inference_steps is 2.5, it must be a whole number"),
        ({"num_inference_steps": 30, "profile": "published"}, "profile 'published' cannot run 30 steps; it can run 1"),
        ({"rtol": 1e-3}, "method F-PNDM takes no option rtol"),
        ({"steps": 5}, "the pipeline takes no steps; num_inference_steps says the steps"),
        ({"solver": "digits_nfe8", "method": "DDIM"}, "a solver file says the method; 'DDIM' cannot be given with it"),
        ({"solver": 5}, "solver is 5, it must be a path, a name, or a mapping"),
        ({"batch_size": 0}, "batch_size is 0, it must be at least 1"),
        ({"batch_size": "two"}, "batch_size is 'two', it must be a whole number"),
        ({"generator": 7}, "generator must be a torch.Generator, or a list of one for each image"),
        ({"generator": [torch.Generator()] * 2, "batch_size": 3}, "generator has 2 for 3 images"),
        ({"output_type": "latent"}, "output_type 'latent' is not one of pil, np, pt"),
        ({"callback": "print"}, "callback is 'print'"),
    ],
)  # fmt: skip
def test_wrong_arguments(pipeline, arguments, said):
    with pytest.raises(ValueError, match=said):
        pipeline(**arguments)


def test_what_a_network_predicts_is_one_of_three():
    with pytest.raises(ValueError, match="prediction 'v' is not one of epsilon, v_prediction, sample"):
        PNDMPipeline(lambda x, t: x, Schedule(), (1, 4, 4), prediction="v")


def test_a_network_that_predicts_something_else_takes_no_solver_file():
    pipeline = PNDMPipeline(lambda x, t: x, Schedule(), (1, 8, 8), prediction="v_prediction")
    with pytest.raises(ValueError, match="of a network that predicts epsilon, this one predicts v_prediction"):
        pipeline(1, solver="digits_nfe8")


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_the_released_code_is_of_networks_that_predict_epsilon(prediction):
    pipeline = PNDMPipeline(lambda x, t: x, Schedule(), (1, 8, 8), prediction=prediction)
    with pytest.raises(
        ValueError, match=f"^profile 'published' needs .* predicts epsilon; this predicts {prediction}$"
    ):
        pipeline(1, 10, profile="published")


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_network_that_returns_another_shape(prediction):
    pipeline = PNDMPipeline(lambda x, t: x[:1], Schedule(), (1, 4, 4), prediction=prediction)
    with pytest.raises(ValueError, match=r"the network returned a tensor \(1, 1, 4, 4\), it must be like x"):
        pipeline(2, 5, method="DDIM")


def test_a_network_that_returns_nan():
    broken = PNDMPipeline(lambda x, t: x * torch.nan, Schedule(), (1, 4, 4))
    with pytest.raises(NotFinite, match="the network returned NaN or infinity, with F-PNDM in 5 steps"):
        broken(1, 5)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=(8, 16), in_channels=1, out_channels=1, block_out_channels=(32, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=None, flip_sin_to_cos=False, freq_shift=1, downsample_padding=0,
    ).eval()  # fmt: skip


class TestFromPretrained:
    def test_a_checkpoint_with_an_experiment_by_name_or_as_a_dict(self, pipeline, tiny):
        sections = load(str(tiny.config)).model_dump()
        for config in (
            tiny.config,
            str(tiny.config),
            {name: sections[name] for name in ("Schedule", "Dataset", "Model")},
            load(str(tiny.config)),
        ):
            found = PNDMPipeline.from_pretrained(tiny.model, config)
            assert torch.equal(found(2, 3, seeded(0), "pt").images, pipeline(2, 3, seeded(0), "pt").images)

    def test_a_training_file_says_it_all(self, pipeline, tiny, tmp_path):
        e = load(str(tiny.config))
        record = {name: getattr(e, name).model_dump() for name in ("Schedule", "Dataset", "Model")}
        checkpoint.save(tmp_path / "ema.safetensors", tiny.network.state_dict(), {"weights": "EMA", **record})
        state = tiny.network.state_dict()
        torch.save({"model": state, "ema": state, "experiment": e.model_dump()}, tmp_path / "train-1.ckpt")
        for name in ("ema.safetensors", "train-1.ckpt"):
            found = PNDMPipeline.from_pretrained(tmp_path / name)
            assert torch.equal(found(2, 3, seeded(0), "pt").images, pipeline(2, 3, seeded(0), "pt").images)

    def test_an_experiment_that_contradicts_the_training_is_refused(self, tiny, tmp_path):
        sections = load(str(tiny.config)).model_dump()
        for section, key, value in (("Schedule", "type", "cosine"), ("Dataset", "rescaled", False)):
            record = {section: sections[section] | {key: value}}
            checkpoint.save(tmp_path / "ema.safetensors", tiny.network.state_dict(), record)
            with pytest.raises(InputError, match=f"{section}.{key} is .* was trained with {value!r}"):
                PNDMPipeline.from_pretrained(tmp_path / "ema.safetensors", tiny.config)

    def test_how_images_are_scaled(self, tiny):
        tree = load(str(tiny.config)).model_dump()
        for scaling in ({"rescaled": False}, {"rescaled": False, "logit_transform": True}):
            tree["Dataset"] |= scaling
            found = PNDMPipeline.from_pretrained(tiny.model, tree)
            x = torch.randn(1, 1, 8, 8, generator=seeded(0))
            with torch.no_grad():
                state = last(solve("F-PNDM", found.network, x, Schedule(), 3))
            expected = decode(
                state.x, load(str(tiny.config), {f"Dataset.{k}": ("", v) for k, v in scaling.items()}).Dataset
            )
            assert np.array_equal(np.asarray(found(1, 3, seeded(0)).images[0]), expected[0, 0])

    @pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
    @pytest.mark.parametrize("layout", ["pipeline", "flat"])
    def test_a_diffusers_folder(self, prediction, layout, unet, tmp_path):
        scheduler = diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_end=0.03, num_train_timesteps=500, prediction_type=prediction,
            clip_sample=False, timestep_spacing="leading",
        )  # fmt: skip
        theirs = diffusers.DDIMPipeline(unet, scheduler)
        theirs.set_progress_bar_config(disable=True)
        if layout == "pipeline":
            theirs.save_pretrained(tmp_path)
            if prediction == "sample":  # as releases of 2022 told it
                file = tmp_path / "scheduler/scheduler_config.json"
                told = json.loads(file.read_text()) | {"predict_epsilon": False}
                del told["prediction_type"]
                file.write_text(json.dumps(told))
        else:
            unet.save_pretrained(tmp_path)
            scheduler.save_pretrained(tmp_path)
        found = PNDMPipeline.from_pretrained(tmp_path)
        assert found.shape == (1, 8, 16)
        assert found.schedule.diffusion_step == 500
        expected = theirs(2, seeded(0), num_inference_steps=20, output_type="np").images
        images = found(2, 20, seeded(0), "np", method="DDIM").images
        np.testing.assert_allclose(images, expected, rtol=0, atol=1e-3)
        assert expected.std() > 0.05

    @pytest.mark.parametrize(
        "file, key, value, said",
        [
            ("scheduler_config.json", "beta_schedule", "wavy", "beta_schedule is 'wavy'"),
            ("scheduler_config.json", "rescale_betas_zero_snr", True, "rescale_betas_zero_snr is True"),
            ("scheduler_config.json", "snr_shift_scale", 3.0, "snr_shift_scale is 3.0"),
            (
                "scheduler_config.json",
                "_class_name",
                "EDMEulerScheduler",
                "a network of EDMEulerScheduler: its network is",
            ),
            ("scheduler_config.json", "_class_name", "FlowMatchEulerDiscreteScheduler", "learned flow matching"),
            ("scheduler_config.json", "_class_name", "LCMScheduler", "jumps from any time"),
            ("scheduler_config.json", "use_flow_sigmas", True, "use_flow_sigmas is True"),
            ("scheduler_config.json", "timestep_type", "continuous", "timestep_type is 'continuous'"),
            ("scheduler_config.json", None, "[]", "scheduler_config.json: not a JSON object"),
            ("scheduler_config.json", "beta_start", 0.5, "scheduler_config.json: betas must"),
            ("scheduler_config.json", "trained_betas", [], "scheduler_config.json: betas must"),
            ("config.json", "sample_size", None, "does not say its noise schedule and image size"),
            ("config.json", "sample_size", [8], r"sample_size is \[8\]; it must be one or two whole numbers"),
        ],
    )
    def test_a_diffusers_folder_that_cannot_be_read(self, file, key, value, said, unet, tmp_path):
        unet.save_pretrained(tmp_path)
        diffusers.DDIMScheduler().save_pretrained(tmp_path)
        text = value if key is None else json.dumps(json.loads((tmp_path / file).read_text()) | {key: value})
        (tmp_path / file).write_text(text)
        with pytest.raises(InputError, match=said):
            PNDMPipeline.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        "source, config, said",
        [
            (None, "digits.yml", "from_pretrained takes a path or a name, not None"),
            ("nothing.yml", None, "no file nothing.yml"),
            ("nothing.ckpt", "digits.yml", "no file nothing.ckpt"),
            ("model/digits.safetensors", None, "does not say its noise schedule and image size; give them as config="),
            ("model/digits.safetensors", "nothing.yml", "no file nothing.yml"),
            ("model/digits.safetensors", "ddim_cifar10.yml", "does not fit the Model section"),
            ("model/digits.safetensors", {}, "config: Schedule is missing"),
            ("model/digits.safetensors", {"Schedul": {}}, "config: "),
            ("README.md", "digits.yml", "not a checkpoint"),
            ("model/digits.safetensors", "fashion.yml", "does not fit the Model section"),
        ],
    )
    def test_wrong_sources(self, source, config, said):
        with pytest.raises(InputError, match=said):
            PNDMPipeline.from_pretrained(source, config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device 'cuda' is not there: PyTorch finds no cuda device on this machine"):
        PNDMPipeline.from_pretrained("digits.yml", device="cuda")
