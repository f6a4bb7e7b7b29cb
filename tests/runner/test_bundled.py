"""The networks that come with the project, and what README and docs say of it."""

import hashlib
import json
import re

import pytest
import torch
from helpers import ROOT

from pndm import load_experiment, load_model
from pndm.runner import progress


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_file_is_small_and_the_one_in_the_docs(name):
    file = ROOT / "model" / f"{name}.safetensors"
    assert file.stat().st_size < 8_000_000
    assert hashlib.sha256(file.read_bytes()).hexdigest() in (ROOT / "docs" / f"{name}.md").read_text()


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """However slow the processor is, no line says how far a run is."""
    monkeypatch.setattr(progress, "EVERY", 10**6)


@pytest.mark.parametrize("value", ["type=cosine", "type=edm", "beta_end=0.03", "diffusion_step=500"])
@pytest.mark.parametrize("config", ["digits.yml", "fashion.yml"])
def test_another_noise_schedule_than_the_networks_is_refused(cli, tmp_path, config, value):
    flags = ["--config", config, "--set", f"Schedule.{value}", "--image_path", tmp_path / "run"]
    status, _, err = cli("--total_num", 1, "--device", "cpu", *flags)
    assert status == 2 and not (tmp_path / "run").exists()
    assert err.startswith("main.py: --set: ") and ".safetensors was trained with" in err and err.count("\n") == 1


def test_examples_run_wherever_the_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment("digits.yml")
    network = load_model(experiment.Model, experiment.Sample.model_path)
    assert network(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)


def test_its_digits_are_near_the_data(cli, tmp_path):
    """500 digits redrawn from the data have 0.063 on average (docs/digits.md), a broken network several times that."""
    status, _, err = cli("--total_num", 500, "--sample_speed", 20, "--device", "cpu", "--image_path", tmp_path / "run")
    assert (status, err) == (0, "")
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["nfe"] == 29
    assert record["frechet"]["value"] < 0.1
    assert record["checkpoint"]["weights"] == "EMA"


def test_its_clothes_are_near_the_data(cli, tmp_path):
    """Without the data set: its statistics are bundled, too. Noise has 44 (docs/distances.md)."""
    run = ("--config", "fashion.yml", "--total_num", 100, "--sample_speed", 10, "--device", "cpu")
    status, out, err = cli(*run, "--image_path", tmp_path / "run", "--set", f"Dataset.path={tmp_path / 'nowhere'}")
    assert (status, err) == (0, "")
    assert "Fashion-MNIST classifier features" in out and "FID" not in out
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["frechet"]["value"] < 4
    assert record["checkpoint"]["weights"] == "EMA"


def test_the_python_in_the_readme_runs_as_written(monkeypatch):
    """The second snippet is given a small pipeline in place of the published one."""
    diffusers = pytest.importorskip("diffusers")
    parts = re.split("(?m)^    from pndm", (ROOT / "README.md").read_text())[1:]
    first, second = (
        "\n".join(line.strip() for line in f"from pndm{part}".split("\n\n")[0].splitlines()) for part in parts
    )
    names = {}
    exec(first, names)
    assert len(names["images"]) == 16
    assert names["images"][0].size == (8, 8)

    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    small = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    small.set_progress_bar_config(disable=True)
    calls = []
    unet.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(diffusers.DDPMPipeline, "from_pretrained", lambda name: small)
    exec(second, names | {"DDPMPipeline": diffusers.DDPMPipeline})
    assert len(calls) == 59


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
