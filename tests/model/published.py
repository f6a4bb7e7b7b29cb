"""The eleven published configurations with reproducible weights, for the tests of this folder."""

import functools
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from fill import _uniform, fill

DATA = Path(__file__).parent.parent / "data"
MANIFEST = json.loads((DATA / "manifest.json").read_text())


def section(name):
    """The `Model` section of a configuration, as it was published."""
    if "config" in MANIFEST[name]:
        return MANIFEST[name]["config"]
    return yaml.safe_load((DATA / f"published_configs/{name}.yml").read_text())["Model"]


@functools.lru_cache(1)
def weights(name):
    """Its state dict under the published names, filled with the reference weights."""
    return {tensor: torch.from_numpy(fill(tensor, shape)) for tensor, shape in MANIFEST[name]["tensors"].items()}


def image_size(name):
    return section(name).get("image_size") or (16 if "small" in name else 32)


def noise(n, size):
    """The input of the reference outputs: (n, 3, size, size) float32."""
    x = _uniform("x", n * 3 * size * size).reshape(n, 3, size, size) * 1.7320508
    return torch.from_numpy(x.astype(np.float32))


def evaluate(network, size=16, dtype=torch.float32):
    """ε of a network on two images at two times."""
    with torch.inference_mode():
        return network(noise(2, size).to(dtype), torch.tensor([7.0, 640.5], dtype=dtype))
