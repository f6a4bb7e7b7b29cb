"""Folders of diffusers' `UNet2DModel`: the same ε as diffusers' own network, or a line that says why not."""

import json
import shutil
import sys
import types
from fnmatch import fnmatch
from importlib.machinery import ModuleSpec

import diffusers
import pytest
import torch
from helpers import evaluate, published_section

from pndm.config.errors import InputError
from pndm.model import load_model
from pndm.model.checkpoint import read
from pndm.model.diffusers import WEIGHTS
from pndm.runner.build import checkpoint_path

# The published configurations: google/ddpm-cifar10-32, and google/ddpm-bedroom-256, google/ddpm-celebahq-256.
CIFAR10 = {
    "act_fn": "silu", "attention_head_dim": None, "block_out_channels": (128, 256, 256, 256),
    "center_input_sample": False, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
    "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-6, "norm_num_groups": 32,
    "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
LSUN = CIFAR10 | {
    "block_out_channels": (128, 128, 256, 256, 512, 512), "sample_size": 256,
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
}  # fmt: skip
NARROW = LSUN | {"block_out_channels": (32, 32, 64, 64, 128, 128)}
SMALL = CIFAR10 | {
    "block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 16,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
SMALL_SECTION = published_section("ddim_small") | {"ch_mult": [1, 2]}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def random_network(config):
    """diffusers' network with weights of which every one matters (its own are zero or one in places)."""
    network = diffusers.UNet2DModel(**config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return network


def check(folder, theirs, section, size):
    """Ours, from the files in `folder`, answers as `theirs`, in float64: kernels differ too much in float32.

    diffusers describes times in float32 all the same.
    """
    theirs, ours = theirs.double(), load_model(section, folder).double()
    expected, found = (evaluate(network, size, torch.float64) for network in (lambda x, t: theirs(x, t).sample, ours))
    assert expected.std() > 0.2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config, name, changes, size",
    [(CIFAR10, "ddim_cifar10", {}, 32), (NARROW, "ddim_bedroom", {"ch": 32}, 96)],
    ids=["cifar10-32", "bedroom-256 and celebahq-256, narrow"],
)
def test_published_configurations(config, name, changes, size, tmp_path):
    theirs = random_network(config)
    theirs.save_pretrained(tmp_path)
    check(tmp_path, theirs, published_section(name) | changes, size)


def test_float64(tmp_path):
    theirs = random_network(SMALL).double()
    theirs.save_pretrained(tmp_path)
    assert load_model(SMALL_SECTION, tmp_path).conv_in.weight.dtype == torch.float64
    check(tmp_path, theirs, SMALL_SECTION, 16)


def test_where_the_weights_lie(tmp_path):
    """A folder, a pipeline's folder, a .bin, the names before 0.15, and the single file."""
    theirs = random_network(SMALL)
    theirs.save_pretrained(tmp_path / "new")
    theirs.save_pretrained(tmp_path / "pipeline/unet")
    theirs.save_pretrained(tmp_path / "old")
    state = theirs.state_dict()
    for new, old in OLD_NAMES.items():
        state = {name.replace(new, old): value for name, value in state.items()}
    assert any(".query." in name for name in state)
    (tmp_path / "old" / WEIGHTS[0]).unlink()
    torch.save(state, tmp_path / "old" / WEIGHTS[1])
    for place in ("new", "pipeline", "old", f"new/{WEIGHTS[0]}", f"old/{WEIGHTS[1]}"):
        check(tmp_path / place, theirs, SMALL_SECTION, 16)
        assert read(tmp_path / place).format.endswith(" of diffusers")
    (tmp_path / "new/config.json").rename(tmp_path / "new/gone.json")
    check(tmp_path / "new" / WEIGHTS[0], theirs, SMALL_SECTION, 16)
    with pytest.raises(InputError, match=r"no config\.json with diffusion_pytorch_model"):
        read(tmp_path / "new")


def test_other_settings_that_the_unet_has(tmp_path):
    """improved DDPM's: scale and shift, [cos, sin], padding on all sides, several heads."""
    theirs = random_network(
        SMALL
        | {
            "attention_head_dim": 64,
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "norm_eps": 1e-5,
        }
        | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32}
    )
    theirs.save_pretrained(tmp_path)
    section = published_section("iddpm_small") | {"out_channels": 3, "num_heads": 1, "num_heads_upsample": 1}
    check(tmp_path, theirs, section, 16)


def test_another_number_of_groups(tmp_path):
    theirs = random_network(SMALL | {"norm_num_groups": 8})
    theirs.save_pretrained(tmp_path)
    check(tmp_path, theirs, SMALL_SECTION | {"norm_groups": 8}, 16)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("downsample_padding", 1, "resample same, the section conv"),
        ("flip_sin_to_cos", True, "cosine_first True, the section False"),
        ("freq_shift", 0, "frequency_shift 0, the section 1"),
        ("norm_eps", 1e-5, "norm_eps 1e-05, the section 1e-06"),
        ("attention_head_dim", 8, "heads 8, the section 1"),
        ("layers_per_block", 2, "num_res_blocks 2, the section 1"),
        ("class_embed_type", "timestep", "class_embed_type is 'timestep'"),
        ("num_class_embeds", 10, "num_class_embeds is 10"),
        ("norm_num_groups", 16, "norm_groups 16, the section 32"),
        ("norm_num_groups", 24, "needs a multiple of 24 first"),
        ("attn_norm_num_groups", 16, "norm_num_groups everywhere, 32"),
        ("time_embedding_type", "fourier", "time_embedding_type is 'fourier'"),
        ("down_block_types", ["ResnetDownsampleBlock2D", "DownBlock2D"], "ResnetDownsampleBlock2D"),
        ("down_block_types", ["DownBlock2D", "DownBlock2D"], "same levels down and up"),
        ("down_block_types", ["DownBlock2D"], "block_out_channels is"),
        ("block_out_channels", [32, 48], "multiples of it"),
        ("block_out_channels", [48, 48], "multiple of 32 first"),
        ("block_out_channels", [], "must be as many"),
        ("block_out_channels", "many", "block_out_channels is 'many'"),
        ("attention_head_dim", 7, "it must divide 64"),
        ("time_embedding_dim", 100, "4 × 32"),
        ("resnet_time_scale_shift", "scale_shift", "middle attention has no norm"),
        ("something_new", 1, "something_new is an unknown setting"),
        ("_class_name", "UNet2DConditionModel", "only 'UNet2DModel' can be read"),
    ],
)  # fmt: skip
def test_settings_that_differ_or_are_not_there(key, value, message, saved):
    config = json.loads((saved / "config.json").read_text())
    try:
        (saved / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(InputError, match=message):
            load_model(SMALL_SECTION, saved)
    finally:
        (saved / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\ufeff\x00", "[" * 100_000])
def test_config_that_is_none(text, saved):
    config = (saved / "config.json").read_text()
    try:
        (saved / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config.json: not a JSON object"):
            load_model(SMALL_SECTION, saved)
    finally:
        (saved / "config.json").write_text(config)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    random_network(SMALL).save_pretrained(folder)
    return folder


class TestHub:
    @staticmethod
    def library(monkeypatch, snapshot_download):
        monkeypatch.delenv("HF_HUB_OFFLINE")
        module = types.ModuleType("huggingface_hub")
        module.__spec__ = ModuleSpec("huggingface_hub", None)
        module.snapshot_download = snapshot_download
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)

    def test_name(self, saved, monkeypatch):
        asked = []
        self.library(monkeypatch, lambda name, **_: asked.append(name) or str(saved))
        assert read(checkpoint_path("google/ddpm-cifar10-32")).path == saved / WEIGHTS[0]
        assert asked == ["google/ddpm-cifar10-32"] * 2  # which places there are, then the weights

    @pytest.mark.parametrize(
        "there, taken",
        [
            ([WEIGHTS[1]], WEIGHTS[1]),
            ([f"unet/{WEIGHTS[0]}", f"unet_ema/{WEIGHTS[0]}"], f"unet_ema/{WEIGHTS[0]}"),
            ([f"unet/{WEIGHTS[0]}", f"unet_ema/{WEIGHTS[1]}"], f"unet_ema/{WEIGHTS[1]}"),
            ([f"unet/{WEIGHTS[1]}"], f"unet/{WEIGHTS[1]}"),
        ],
    )
    def test_the_average_comes_before_the_network_and_is_all_that_is_taken(
        self, there, taken, saved, tmp_path, monkeypatch
    ):
        hub, cache = tmp_path / "hub", tmp_path / "cache"
        for file in map(hub.joinpath, there):
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(saved / "config.json", file.parent)
            if file.suffix == ".bin":
                torch.save(random_network(SMALL).state_dict(), file)
            else:
                shutil.copy(saved / file.name, file)

        def snapshot_download(name, allow_patterns):
            for file in (file for file in hub.rglob("*.*") if file.is_file()):
                path = file.relative_to(hub)
                if any(fnmatch(str(path), pattern) for pattern in allow_patterns):
                    (cache / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, cache / path)
            return str(cache)

        self.library(monkeypatch, snapshot_download)
        found = read("someone/pipeline")
        assert (found.path, found.weights == "EMA") == (cache / taken, "unet_ema" in taken)
        assert [path for path in cache.rglob("*") if path.name in WEIGHTS] == [cache / taken]

    def test_one_line_says_what_is_published_under_a_name(self, saved, monkeypatch, capsys):
        """As of a file of config/published.yml."""

        def snapshot_download(name, allow_patterns, local_files_only=False):
            if local_files_only:
                raise OSError("it is not in the cache")
            return str(saved)

        self.library(monkeypatch, snapshot_download)
        checkpoint_path("google/ddpm-cifar10-32")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("google/ddpm-cifar10-32: downloading about 143 MB from the Hugging Face hub"), line
        assert "licence" in line

    def test_no_weights_there(self, saved, tmp_path, monkeypatch):
        """As an interrupted download leaves it."""
        (tmp_path / "config.json").write_text((saved / "config.json").read_text())
        self.library(monkeypatch, lambda name, allow_patterns: str(tmp_path))
        with pytest.raises(InputError, match=r"^someone/old: no weights are in"):
            read("someone/old")

    def test_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(InputError, match="pip install huggingface_hub"):
            read("google/ddpm-cifar10-32")

    def test_not_reached(self, monkeypatch):
        def snapshot_download(name, allow_patterns):
            raise ConnectionError("no route\nto host")

        self.library(monkeypatch, snapshot_download)
        with pytest.raises(InputError, match=r"huggingface_hub cannot get it: no route$"):
            read("google/ddpm-cifar10-32")

    @pytest.mark.parametrize("name", ["a/b/c", "file", "models/x.ckpt", "tests/absent", "../up", "/etc/none", "a/b.pt"])
    def test_never_asked(self, name, monkeypatch):
        self.library(monkeypatch, lambda *_, **__: pytest.fail("the hub was asked"))
        with pytest.raises(InputError, match="no such file"):
            read(name)
        with pytest.raises(InputError, match=r"^no file"):
            checkpoint_path(name)
