"""What all tests share: the project's folder and the reference data."""

import os
from pathlib import Path

# Before PyTorch is imported, and for every process that the tests start: training is the same to the bit only with
# the same number of threads, and the small networks here gain nothing from more.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest

# What CI says of a commit does not depend on the day; elsewhere every run tries other examples.
hypothesis.settings.register_profile("ci", derandomize=True)
if "CI" in os.environ:
    hypothesis.settings.load_profile("ci")

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"


class Tiny:
    """A small network with random weights on 8×8 images, as files of an experiment and a checkpoint."""

    def __init__(self, folder):
        import torch
        import yaml
        from pndm.config.schema import load
        from pndm.model import checkpoint
        from pndm.model.unet import UNet, settings_of

        tree = yaml.safe_load((ROOT / "config" / "digits.yml").read_text())
        tree["Model"] |= {"ch": 32, "ch_mult": [1], "attn_resolutions": []}
        tree["Sample"] |= {"total_num": 10, "batch_size": 4, "sample_speed": 4}
        tree["Sample"]["model_path"] = str(folder / "tiny.safetensors")
        self.config = folder / "tiny.yml"
        self.config.write_text(yaml.safe_dump(tree))
        torch.manual_seed(0)
        self.network = UNet(settings_of(load(str(self.config)).Model))
        self.model = folder / "tiny.safetensors"
        checkpoint.save(self.model, self.network.state_dict(), {"weights": "raw"})

    def flags(self, folder, *more):
        """The command line of a sampling run into `folder`."""
        return ["--config", str(self.config), "--device", "cpu", "--image_path", str(folder), *more]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cli(capsys):
    """Run main.py in this process: cli(flag, ...) → (exit status, stdout, stderr)."""
    from pndm import cli as main

    def run(*flags):
        capsys.readouterr()
        try:
            status = main.main([str(flag) for flag in flags])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run
