"""The one UNet is the four published networks: their names, shapes and outputs."""

import numpy as np
import pytest
import torch
import yaml
from helpers import DATA, MANIFEST, image_size, network_input, published_section, published_weights

from pndm.config.load import FOLDER, load
from pndm.model import load_model
from pndm.model.checkpoint import closest
from pndm.model.settings import settings_of
from pndm.model.unet import UNet


@pytest.mark.parametrize("name", MANIFEST)
def test_names_and_shapes(name):
    network = UNet(settings_of(published_section(name))) if "small" in name else _without_memory(name)
    struc, tensors = published_section(name)["struc"], MANIFEST[name]["tensors"]
    fit = closest(network, {tensor: torch.empty(shape, device="meta") for tensor, shape in tensors.items()})
    assert (fit.family, fit.differences) == (struc, [])
    used = [tensor for source in fit.sources.values() for tensor in source.names]
    assert sorted(used) == sorted(tensors), "each published tensor is used once"


def _without_memory(name):
    with torch.device("meta"):
        return UNet(settings_of(published_section(name)))


LARGE = ("ddim_bedroom", "ddim_church")  # 256×256


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in MANIFEST])
def test_outputs(name):
    reference = np.load(DATA / f"forward_{name}.npz")
    # Bedroom and church are one network: the weights follow from names and shapes, which are the same.
    network = load_model(published_section(name), published_weights(name.replace("church", "bedroom")))
    size = image_size(name)
    with torch.inference_mode():
        eps = network(network_input(len(reference["t"]), size), torch.from_numpy(reference["t"])).numpy()
    if size == 256:
        eps = eps[:, :, ::8, ::8]
    assert np.abs(eps - reference["y"]).max() < 1e-4 * reference["y"].std()


def test_published_experiments_are_in_config():
    """config/ has all seven as they were published, but for what the comment on top of each says."""
    files = sorted((DATA / "published_configs").glob("*.yml"))
    assert len(files) == 7
    for file in files:
        ours, theirs = (yaml.safe_load(path.read_text()) for path in (FOLDER / file.name, file))
        assert ours["Sample"].pop("model_path").startswith("temp/models/")
        assert ours["Sample"].pop("total_num") == 4 * theirs["Sample"].pop("total_num") == 50_000
        assert ours == theirs
        load(file.name)
