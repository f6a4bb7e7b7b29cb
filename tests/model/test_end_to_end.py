"""Checkpoints through the front door: PF on the score-SDE networks, the cosine schedule on improved DDPM's."""

import json

import pytest
import torch
import yaml
from helpers import published_section, published_weights

from pndm import cli as main

PF = ["--method", "PF", "--rtol", "0.02", "--atol", "0.02"]
CASES = {
    # network: (schedule, flags, steps, (fewest, most) network calls an image)
    "pf_small": ("linear", PF, None, (13, 1000)),
    "pf_deep_small": ("linear", PF, None, (13, 1000)),
    "iddpm_small": ("cosine", ["--method", "F-PNDM", "--sample_speed", "10"], 10, (19, 19)),
}


@pytest.fixture
def command(tmp_path):
    """Flags that sample a few images from a small network with the reference weights, in double precision."""

    def flags(name, schedule):
        config = {
            "Schedule": {"type": schedule},
            "Dataset": {"dataset": "CIFAR10", "image_size": 16, "channels": 3},
            "Model": published_section(name),
            "Sample": {"total_num": 3, "batch_size": 2, "model_path": str(tmp_path / "checkpoint")},
        }
        (tmp_path / "small.yml").write_text(yaml.safe_dump(config))
        # A thirtieth of random weights' output: a flow that an adaptive method can follow.
        weights = {key: value.double() for key, value in published_weights(name).items()}
        *_, scale, shift = weights
        weights[scale], weights[shift] = weights[scale] / 30, weights[shift] / 30
        torch.save(weights, tmp_path / "checkpoint")
        return ["--config", str(tmp_path / "small.yml"), "--device", "cpu", "--image_path", str(tmp_path / "images")]

    return flags


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_sample(name, command, tmp_path, capsys):
    schedule, flags, steps, (fewest, most) = CASES[name]
    assert main.main([*command(name, schedule), *flags]) == 0
    record = json.loads((tmp_path / "images/result.json").read_text())
    assert (record["images"], record["steps"]) == (3, steps) and fewest <= record["nfe"] <= most
    assert record["checkpoint"]["format"] == "PyTorch file, state dict"
    assert record["checkpoint"]["weights"] == "not stated"
    assert sorted(path.name for path in (tmp_path / "images").glob("0*.png")) == [f"{i:06d}.png" for i in range(3)]
    said = [line for line in capsys.readouterr().out.splitlines() if "weights" in line]
    assert said == [f"network from {tmp_path / 'checkpoint'}: PyTorch file, state dict; weights: not stated"]


def test_checkpoint_that_does_not_fit(command, tmp_path, capsys):
    flags = command("pf_small", "linear")
    assert main.main([*flags, "--set", "Model.nf=64"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint: does not fit the Model section: all_modules.0.weight is (128, 32), not (256, 64)" in line
    assert not (tmp_path / "images").exists()
