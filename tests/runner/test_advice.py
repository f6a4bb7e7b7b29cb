"""What a training run says to who has just begun, and what is in its folder."""

from types import SimpleNamespace

import pytest
from helpers import image_files
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pndm.runner import advice


def train(tiny, folder, steps, *more):
    """Flags of a short training run of 64 images a step, without images on the way."""
    values = {"steps": steps, "log_interval": 5, "sample_interval": 10**6, "checkpoint_interval": 10**6}
    sets = [f"--set=Train.{name}={value}" for name, value in values.items()]
    return ["--runner", "train", "--config", tiny.config, "--device", "cpu", "--train_path", folder, *sets, *more]


def clipped(folder):
    return [event.value for event in EventAccumulator(str(folder)).Reload().Scalars("clipped")]


def test_too_few_images_are_said_before_the_first_step(tiny, cli, tmp_path):
    status, out, err = cli(*train(tiny, tmp_path / "run", 10, "--set=Optim.grad_clip=1e9"))
    assert status == 0
    said = "10 steps of 64 images: the network will see 640 images, and below 20,000 samples are mostly noise"
    assert err == f"note: {said}\n"
    assert out.splitlines()[0] == "10 steps of 64 images"


def test_a_network_that_is_trained_already_needs_no_many_images(tiny, cli, tmp_path):
    more = [f"--set=Train.start={tiny.model}", "--set=Optim.grad_clip=1e9"]
    assert cli(*train(tiny, tmp_path / "run", 10, *more))[2] == ""


def test_attention_at_a_size_that_no_level_has_is_said(tiny, cli, tmp_path):
    err = cli(*train(tiny, tmp_path / "run", 10, "--set=Model.attn_resolutions=[3]", "--set=Optim.grad_clip=1e9"))[2]
    assert "note: Model.attn_resolutions has 3, but the network's sizes are 8\n" in err


def test_attention_of_edms_networks_is_looked_at_too(capsys):
    advice.attention_nowhere(SimpleNamespace(image_size=8, channel_mult=[1, 2], attn_resolutions=[16, 4]))
    assert capsys.readouterr().err == "note: Model.attn_resolutions has 16, but the network's sizes are 8, 4\n"


def test_the_plan_says_it_too(tiny, cli, tmp_path):
    assert "note: 10 steps of 64 images: the network will see 640" in cli(*train(tiny, tmp_path, 10, "--plan"))[2]
    assert "note" not in cli(*train(tiny, tmp_path, 1000, "--plan"))[2]


def test_minutes_that_are_too_few_are_said_once_the_speed_is_known(tiny, cli, tmp_path):
    flags = train(tiny, tmp_path / "run", 10**6, "--minutes", 0.03, "--set=Optim.grad_clip=null")
    status, _, err = cli(*flags)
    assert status == 0
    assert err.count("note: --minutes at ") == 1 and "images/s: the network will see" in err


@pytest.mark.parametrize(("clip", "share", "notes"), [("1e-3", 1, 1), ("1e9", 0, 0), ("null", 0, 0)])
def test_clipping_is_logged_and_a_clip_that_shortens_all_is_said(tiny, cli, tmp_path, clip, share, notes):
    status, _, err = cli(*train(tiny, tmp_path / "run", 10, f"--set=Optim.grad_clip={clip}"))
    assert (status, clipped(tmp_path / "run")) == (0, [share, share])
    assert err.count("Optim.grad_clip 0.001 has shortened each of the 5 gradients so far") == notes


def test_a_run_that_is_continued_is_not_lectured_again(tiny, cli, tmp_path):
    assert "note" in cli(*train(tiny, tmp_path / "run", 5, "--set=Optim.grad_clip=1e9"))[2]
    assert cli(*train(tiny, tmp_path / "run", 10, "--set=Optim.grad_clip=1e9", "--restart"))[2] == ""


def test_the_newest_grid_is_a_picture_in_the_folder(tiny, cli, tmp_path):
    assert cli(*train(tiny, tmp_path / "run", 10, "--set=Train.sample_interval=10"))[0] == 0
    with Image.open(tmp_path / "run" / "grid.png") as grid:
        assert grid.size[0] == grid.size[1] > 64


def test_samples_of_a_network_that_was_trained_further_say_what_to_do(tiny, cli, tmp_path):
    assert cli(*tiny.flags(tmp_path / "images"))[0] == 0
    before = image_files(tmp_path / "images")
    assert cli(*train(tiny, tmp_path / "run", 5))[0] == 0
    trained = tmp_path / "run" / "ema.safetensors"
    status, _, err = cli(*tiny.flags(tmp_path / "images", "--model_path", trained))
    assert status == 2 and err.startswith("main.py: --image_path: ") and err.count("\n") == 1
    assert "images of another network, or of the same before more training (checkpoint is " in err
    assert "delete the folder, or choose another folder" in err
    assert image_files(tmp_path / "images") == before


def test_the_ready_experiment_for_a_folder_fits_the_data_it_is_given(cli, tmp_path):
    for i in range(40):
        Image.new("RGB", (50, 40), (6 * i, 100, 200 - i)).save(tmp_path / f"{i}.png")
    status, out, err = cli("--runner", "train", "--config", "folder.yml", "--set", f"Dataset.path={tmp_path}", "--plan")
    assert (status, err) == (0, "")
    assert "passes over 40 images" in out
