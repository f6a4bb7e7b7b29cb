"""Networks of EDM for the tests: their published names with reproducible weights, and pickles as EDM writes them.

`edm.json` has the arguments, names and shapes of six networks; `edm.npz` what EDM's own code made of them,
run once in float64 (every float32 of its networks.py read as float64). Weights: `fill` of the published name, of
frequencies 160 times that. Input: √(0.25 + σ²) times the uniform noise "x" of `fill`, times √3, at SIGMAS (edm_cifar10:
the middle two); classes 0, 1, 2 and none. NAME.eps is (x − D(x; σ))/σ. NAME.images are those of EDM's sampler in 18
steps, σ 0.002 … 80, from the noise "noise" times √3; classes 0, 1.
"""

import collections
import json
import pickle
import sys
import types

import numpy as np
import torch
from data.fill import fill, uniform
from helpers import DATA

from pndm.model.persistence import own_names

NETWORKS = json.loads((DATA / "edm.json").read_text())
REFERENCE = np.load(DATA / "edm.npz")
SIGMAS = (0.002, 0.3, 2.5, 80.0)
SOURCE = "raise SystemExit('the text of a class was executed')"


def section(name):
    """The `Model` section of a network."""
    made, given = NETWORKS[name]["class"], NETWORKS[name]["arguments"]
    architecture = {"fourier": "NCSN++", "positional": "DDPM++"}.get(given.get("embedding_type"), "ADM")
    return {
        "struc": "EDM",
        "architecture": architecture,
        "preconditioning": made.removesuffix("Precond"),
        "image_size": given["img_resolution"],
        "in_channels": given["img_channels"],
        "labels": given["label_dim"],
        "model_channels": given["model_channels"],
        "channel_mult": given["channel_mult"],
        "num_blocks": given.get("num_blocks", 4),
        "attn_resolutions": given.get("attn_resolutions", [16]),
        "dropout": 0.1,
    }


def published(name):
    """Its tensors under EDM's names, float32."""
    tensors = {}
    for tensor, shape in NETWORKS[name]["tensors"].items():
        scale = 160 if tensor.endswith("freqs") else 1
        tensors[tensor] = torch.from_numpy(scale * fill(tensor, shape))
    return tensors


def weights(name, dtype=torch.float64):
    """Its tensors as the reader names them."""
    return {tensor: value.to(dtype) for tensor, value in own_names(published(name)).items()}


def noise(name, what, count):
    """The reference noise, float64 (count, C, H, W)."""
    size, channels = NETWORKS[name]["arguments"]["img_resolution"], NETWORKS[name]["arguments"]["img_channels"]
    shape = (count, channels, size, size)
    return torch.from_numpy(uniform(what, int(np.prod(shape))).reshape(shape) * 1.7320508)


def classes(name, count):
    return torch.tensor([0, 1, 2, -1][:count]) if NETWORKS[name]["arguments"]["label_dim"] else None


class Persistent:
    """An object of a class that EDM's torch_utils.persistence decorates, as that pickles it."""

    def __init__(self, name, state, **more):
        self.meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": name, "state": state} | more

    def __reduce__(self):
        return getattr(sys.modules["torch_utils.persistence"], "_reconstruct_persistent_obj"), (self.meta,)  # noqa: B009


def install(monkeypatch):
    """Let pickle find the names of EDM's modules, for writing; nothing is read through them."""
    module, package = types.ModuleType("torch_utils.persistence"), types.ModuleType("torch_utils")

    def rebuild(meta):
        raise AssertionError("a pickle was executed")

    rebuild.__module__, rebuild.__qualname__ = module.__name__, "_reconstruct_persistent_obj"
    setattr(module, rebuild.__qualname__, rebuild)
    package.persistence = module
    monkeypatch.setitem(sys.modules, "torch_utils", package)
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)


def state(parameters=(), modules=(), buffers=(), **more):
    """The attributes of a module."""
    parts = {"_parameters": dict(parameters), "_buffers": dict(buffers), "_modules": dict(modules)}
    hooks = {"_non_persistent_buffers_set": set(), "_backward_hooks": collections.OrderedDict()}
    return {"training": False, **parts, **hooks, **more}


def tree(tensors):
    """Nested modules of named tensors; those of the encoder and decoder are PyTorch's own containers."""
    own, below = {}, {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = value
        else:
            own[first] = torch.nn.Parameter(value, requires_grad=False)
    modules = {}
    for name, part in below.items():
        inner = tree(part)
        if name in ("enc", "dec"):
            modules[name] = torch.nn.ModuleDict()
            vars(modules[name]).update(inner)
        else:
            filters = {"resample_filter": torch.ones(1, 1, 2, 2) / 4 if "down" in name or "up" in name else None}
            modules[name] = Persistent("UNetBlock", inner | {"_buffers": filters, "skip_scale": np.sqrt(0.5)})
    return state(own, modules)


def snapshot(name, **arguments):
    """The dict that EDM pickles, of a network: `arguments` over those that it was made with."""
    given = NETWORKS[name]["arguments"]
    inner = {key: value for key, value in given.items() if key not in ("img_resolution", "img_channels", "model_type")}
    weights = {tensor.removeprefix("model."): value for tensor, value in published(name).items()}
    model_type = "DhariwalUNet" if "adm" in name else "SongUNet"
    model = Persistent(model_type, tree(weights) | {"_init_args": (), "_init_kwargs": inner})
    outer = state(modules={"model": model}, _init_args=(), _init_kwargs=given | arguments, sigma_data=0.5)
    return {
        "ema": Persistent(NETWORKS[name]["class"], outer),
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2, "_init_args": (), "_init_kwargs": {}}),
        "augment_pipe": None,
        "dataset_kwargs": {"path": "datasets/images.zip", "use_labels": False, "xflip": False},
    }


def write(path, content, protocol=None):
    """Pickle as EDM does; returns the path."""
    path.write_bytes(pickle.dumps(content, protocol))
    return path
