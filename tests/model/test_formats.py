"""Every published format, written as its source writes it, gives the same network; so do its corners."""

import collections
import copy
import gc
import hashlib
import time

import pytest
import torch
from helpers import evaluate, published_section, published_weights
from torch import nn

from pndm import cli as main
from pndm.config.errors import InputError
from pndm.config.load import load
from pndm.model import load_model
from pndm.model.checkpoint import read, save
from pndm.model.settings import settings_of


def shifted(tensors, by=1.0):
    """Other weights under the same names, which a reader that takes the wrong ones would use."""
    return collections.OrderedDict((name, value + by) for name, value in tensors.items())


def parallel(tensors):
    return collections.OrderedDict((f"module.{name}", value) for name, value in tensors.items())


def optimizer(tensors):
    parameters = [nn.Parameter(value.clone()) for value in tensors.values()]
    adam = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    return adam.state_dict()


def score_sde(tensors):
    model = parallel(shifted(tensors))
    model = {"module.sigmas": torch.linspace(50, 0.01, 1000), **model}
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": list(tensors.values())}
    return {"optimizer": optimizer(tensors), "model": model, "ema": ema, "step": 7}


FORMATS = {
    # format: (network, what torch.save is given, kind, weights)
    "bare": ("ddim_small", dict, "state dict", "not stated"),
    "DataParallel": ("ddim_small", parallel, "state dict", "not stated"),
    "released list": (
        "ddim_small",
        lambda t: [parallel(t), optimizer(t), 3, 7],
        "training list of the released code",
        "raw",
    ),
    "released EMA": ("ddim_small", lambda t: dict(parallel(t)), "state dict", "not stated"),
    "DDIM list": (
        "ddim_small",
        lambda t: [parallel(shifted(t)), optimizer(t), 3, 7, dict(parallel(t))],
        "DDIM training list",
        "EMA",
    ),
    "improved-diffusion": ("iddpm_small", collections.OrderedDict, "state dict", "not stated"),
    "score-SDE": ("pf_small", score_sde, "score-SDE training checkpoint", "EMA"),
    "score-SDE, deep": ("pf_deep_small", score_sde, "score-SDE training checkpoint", "EMA"),
    "score-SDE, bare": (
        "pf_small",
        lambda t: {"sigmas": torch.linspace(50, 0.01, 1000), **t},
        "state dict",
        "not stated",
    ),
    "score-SDE without EMA": (
        "pf_small",
        lambda t: {"model": parallel(t), "step": 7},
        "training checkpoint",
        "raw",
    ),
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("form", FORMATS)
def test_format(form, old, tmp_path):
    name, content, kind, weights = FORMATS[form]
    tensors, file = published_weights(name), tmp_path / "file.with.any.name"
    torch.save(content(tensors), file, _use_new_zipfile_serialization=not old)
    source = read(file)
    assert source.format.endswith(kind) and source.weights == weights
    expected = evaluate(load_model(published_section(name), tensors))
    assert torch.equal(evaluate(load_model(published_section(name), file)), expected)
    assert torch.equal(evaluate(load_model(published_section(name), content(tensors))), expected)


def test_own_safetensors(tmp_path):
    network = load_model(published_section("pf_small"), published_weights("pf_small"))
    model = load("pf_cifar10.yml").Model.model_dump() | published_section("pf_small")
    save(tmp_path / "own", network.state_dict(), {"weights": "EMA", "Model": model})
    source = read(tmp_path / "own")
    assert (source.format, source.weights) == ("safetensors", "EMA")
    assert torch.equal(evaluate(load_model(model, tmp_path / "own")), evaluate(network))
    with pytest.raises(InputError, match="attention_up last, the section every"):
        load_model(published_section("ddim_small") | {"ch_mult": [1, 2]}, tmp_path / "own")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_safetensors_of_any_length_of_header(tmp_path):
    """The first byte is the lowest of the header's length, and now and then that of a pickle."""
    firsts = set()
    for letters in range(256):
        save(tmp_path / "own.safetensors", {"a": torch.ones(1)}, {"note": "x" * letters})
        firsts.add((tmp_path / "own.safetensors").read_bytes()[0])
        assert read(tmp_path / "own.safetensors").format == "safetensors"
    assert 0x80 in firsts


def test_wrappers_are_taken_off_safetensors(tmp_path):
    tensors = {f"module.{i}.weight": torch.ones(1) for i in range(3)}
    save(tmp_path / "wrapped.safetensors", tensors, {})
    assert set(read(tmp_path / "wrapped.safetensors").tensors) == {f"{i}.weight" for i in range(3)}


def test_published_names_in_safetensors(tmp_path):
    """Weights that someone stored again as safetensors, under whatever published names."""
    for name in ("ddim_small", "iddpm_small", "pf_small", "pf_deep_small"):
        save(tmp_path / name, published_weights(name), {})
        expected = evaluate(load_model(published_section(name), published_weights(name)))
        assert torch.equal(evaluate(load_model(published_section(name), tmp_path / name)), expected)


def test_own_training_checkpoint(tmp_path):
    """As runner/train.py writes it, and its averaged network beside it."""
    small = ["Dataset.batch_size=500", "Model.ch=32", "Train.epoch=1", "Train.sample_interval=100"]
    flags = ["--runner", "train", "--config", "digits.yml", "--device", "cpu", "--train_path", str(tmp_path)]
    assert main.main([*flags, *(flag for value in small for flag in ("--set", value))]) == 0
    (file,) = tmp_path.glob("train*.ckpt")
    written = torch.load(file, weights_only=True)
    sources = [read(file), read(tmp_path / "ema.safetensors")]
    assert [source.weights for source in sources] == ["EMA", "EMA"]
    for source in sources:
        assert source.settings == settings_of(written["experiment"]["Model"])
        loaded = load_model(written["experiment"]["Model"], source).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in written["ema"].items())


@pytest.mark.parametrize("stored, loaded", [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")])
def test_precision(stored, loaded, tmp_path):
    tensors = {name: value.to(getattr(torch, stored)) for name, value in published_weights("iddpm_small").items()}
    torch.save(tensors, tmp_path / "a")
    network = load_model(published_section("iddpm_small"), tmp_path / "a")
    assert {value.dtype for value in network.state_dict().values()} == {getattr(torch, loaded)}
    exact = {name: value.to(getattr(torch, loaded)) for name, value in tensors.items()}
    expected = load_model(published_section("iddpm_small"), exact)
    dtype = getattr(torch, loaded)
    assert torch.equal(evaluate(network, dtype=dtype), evaluate(expected, dtype=dtype))


def test_not_a_number_is_allowed(tmp_path):
    tensors = copy.copy(published_weights("ddim_small"))
    tensors["conv_out.bias"] = torch.full((3,), float("nan"))
    torch.save(tensors, tmp_path / "a")
    assert evaluate(load_model(published_section("ddim_small"), tmp_path / "a")).isnan().all()


@pytest.mark.slow
def test_loading_is_quick_and_keeps_one_copy(tmp_path):
    """The full-size CIFAR10 network, from a training list four times its size; the file may change afterwards."""

    def held():
        gc.collect()
        tensors = [value for value in gc.get_objects() if type(value) in (torch.Tensor, torch.nn.Parameter)]
        tensors = [value for value in tensors if not value.is_mkldnn]  # of networks compiled before, without a storage
        storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
        return sum(storages.values())

    tensors, file = published_weights("ddim_cifar10"), tmp_path / "a"
    total = sum(4 * value.numel() for value in tensors.values())
    torch.save([tensors, optimizer(tensors), 3, 7, tensors], file)
    before, start = held(), time.process_time()
    network = load_model(published_section("ddim_cifar10"), file)
    assert time.process_time() - start < 2
    assert held() - before == total
    expected = hashlib.sha256(network.conv_out.weight.numpy()).digest()
    file.write_bytes(bytes(file.stat().st_size))
    assert hashlib.sha256(network.conv_out.weight.numpy()).digest() == expected
