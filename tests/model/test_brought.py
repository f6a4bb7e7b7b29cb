"""Checkpoints that users bring: sharded folders, variants, averages, and what training programs put around weights."""

import json

import diffusers
import pytest
import torch
from diffusers.training_utils import EMAModel
from helpers import evaluate, published_section, published_weights

from pndm.config.errors import InputError
from pndm.model import load_model
from pndm.model.checkpoint import read, sha256


def small_network(seed=0):
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, norm_eps=1e-6, attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def check(place, theirs, bound=1e-5):
    expected = evaluate(lambda x, t: theirs(x, t).sample)
    torch.testing.assert_close(evaluate(load_model(None, place)), expected, atol=bound, rtol=0)
    return read(place)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_folders_in_several_files(variant, safe, tmp_path):
    theirs = small_network()
    theirs.save_pretrained(tmp_path, max_shard_size="2MB", variant=variant, safe_serialization=safe)
    files = [path for path in tmp_path.iterdir() if path.name != "config.json"]
    assert len(files) > 2
    source = check(tmp_path, theirs)
    assert source.format.endswith(f"in {len(files) - 1} files of diffusers")
    before = sha256(source.path)
    shard = next(path for path in files if path.suffix != ".json")
    with shard.open("ab") as file:
        file.write(b"\0")
    assert sha256(source.path) != before


@pytest.mark.parametrize("name", ["safetensors.index.fp16.json", "safetensors.fp16.index.json"])
def test_an_index_is_found_as_each_release_of_diffusers_names_it(name, tmp_path):
    theirs = small_network()
    theirs.save_pretrained(tmp_path, max_shard_size="2MB", variant="fp16")
    (index,) = tmp_path.glob("*.index*")
    index.rename(tmp_path / f"diffusion_pytorch_model.{name}")
    check(tmp_path, theirs)


def test_variants(tmp_path):
    theirs = small_network()
    theirs.half().save_pretrained(tmp_path, variant="fp16")
    check(tmp_path, theirs.float())
    other = small_network(1)
    other.save_pretrained(tmp_path)
    check(tmp_path, other)


@pytest.mark.parametrize("place", ["unet_ema", "alone"])
def test_averages_come_first(place, tmp_path):
    theirs = small_network()
    average = EMAModel(theirs.parameters(), model_cls=diffusers.UNet2DModel, model_config=theirs.config)
    average.save_pretrained(tmp_path / place)
    small_network(1).save_pretrained(tmp_path / "unet")
    source = check(tmp_path / place if place == "alone" else tmp_path, theirs)
    assert source.weights == "EMA"
    assert check(tmp_path / "unet", small_network(1)).weights == "not stated"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda index: index.update(weight_map={}), "no index of weights: it has no weight_map"),
        (lambda index: index["weight_map"].update(x="../x.safetensors"), "lists '../x.safetensors', which is not in"),
        (lambda index: index["weight_map"].update(x="x.safetensors"), "lists x.safetensors, which is missing"),
    ],
)
def test_indices_that_are_none(change, said, tmp_path):
    small_network().save_pretrained(tmp_path, max_shard_size="2MB")
    (path,) = tmp_path.glob("*.index.json")
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=said):
        read(tmp_path)


def test_a_tensor_in_two_files(tmp_path):
    small_network().save_pretrained(tmp_path, max_shard_size="2MB")
    first, second, *_ = sorted(tmp_path.glob("*-of-*"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=r"which another file of .*index.json holds, too"):
        read(tmp_path)


def prefixed(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


def other(tensors):
    return {name: value + 1 for name, value in tensors.items()}


WRAPPED = {
    "state_dict": (lambda t: {"state_dict": t, "epoch": 3}, "not stated"),
    "ema": (lambda t: {"ema": t, "step": 3}, "EMA"),
    "ema beside state_dict": (lambda t: {"state_dict": other(t), "ema": t}, "EMA"),
    "model_state_dict": (lambda t: {"model_state_dict": t, "loss": 0.1}, "raw"),
    "model_state_dict with ema_state_dict": (lambda t: {"model_state_dict": other(t), "ema_state_dict": t}, "EMA"),
    "Lightning": (lambda t: {"state_dict": prefixed(t, "model."), "pytorch-lightning_version": "2.5"}, "not stated"),
    "Lightning with buffers and a metric": (
        lambda t: {"state_dict": prefixed(t, "model.") | {"betas": torch.ones(9), "fid.sum": torch.ones(2)}},
        "not stated",
    ),
    "Lightning with an average": (
        lambda t: {"state_dict": prefixed(other(t), "model.") | prefixed(t, "ema_model.module.")},
        "EMA",
    ),
    "ema_pytorch": (lambda t: {"ema": prefixed(t, "ema_model.") | {"step": torch.tensor(3)}}, "EMA"),
    "ema_model": (lambda t: {"net_model": other(t), "ema_model": t, "sched": {}, "step": 3}, "EMA"),
    "ema_model beside state_dict": (lambda t: {"state_dict": other(t), "ema_model": t}, "EMA"),
    "compiled": (lambda t: prefixed(t, "_orig_mod."), "not stated"),
    "compiled in parallel": (lambda t: {"model": prefixed(t, "module._orig_mod.")}, "raw"),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ddim_small", "iddpm_small"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_is_around_weights(wrapper, family, tmp_path):
    content, weights = WRAPPED[wrapper]
    tensors = published_weights(family)
    torch.save(content(tensors), tmp_path / "file.ckpt")
    assert read(tmp_path / "file.ckpt").weights == weights
    network = load_model(published_section(family), tmp_path / "file.ckpt")
    assert torch.equal(evaluate(network), evaluate(load_model(published_section(family), tensors)))


def test_only_prefixes():
    with pytest.raises(InputError, match="does not fit"):
        load_model(published_section("ddim_small"), {"module.": torch.zeros(1)})
