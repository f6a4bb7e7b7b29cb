"""tools/checkpoint.py: says what a file is, converts it, and names what does not fit."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import published_section, published_weights
from safetensors import safe_open

from pndm.config.errors import InputError
from pndm.config.load import load
from pndm.model import load_model
from pndm.model.checkpoint import read, save

ROOT = Path(__file__).parent.parent.parent


spec = importlib.util.spec_from_file_location("doctor", ROOT / "tools/checkpoint.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture
def doctor(capsys):
    """Runs the tool: (exit status, lines of stdout by their first word, stderr)."""

    def run(*arguments):
        try:
            status = tool.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        return status, dict(line.split(maxsplit=1) for line in said.out.splitlines()), said.err

    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("doctor") / "unnamed"
    tensors = {f"module.{name}": value for name, value in published_weights("ddim_cifar10").items()}
    torch.save([{name: value + 1 for name, value in tensors.items()}, {}, 3, 7, tensors], path)
    return path


@pytest.mark.slow
def test_says_what_it_is_and_converts(doctor, file):
    target = file.with_suffix(".safetensors")
    status, lines, errors = doctor(file, "--to", target)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (status, errors) == (0, "")
    assert lines == {
        "file": str(file),
        "sha256": digest,
        "format": "PyTorch file, DDIM training list",
        "weights": "EMA",
        "parameters": "35,746,307 in 328 tensors",
        "network": "DDIM under the names of DDIM",
        "fits": "ddim_cifar10.yml",
        "written": str(target),
    }
    with safe_open(target, "pt") as opened:
        metadata = json.loads(opened.metadata()["record"])
    assert metadata["Model"] == load("ddim_cifar10.yml").Model.model_dump()
    assert (metadata["weights"], metadata["source_sha256"]) == ("EMA", digest)
    section = published_section("ddim_cifar10")
    ours, theirs = (load_model(section, path).state_dict() for path in (target, file))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read(target).weights == "EMA"

    written = target.read_bytes()
    status, lines, errors = doctor(file, "--to", target)
    assert status == 2 and errors.count("\n") == 1 and "must be a new" in errors and not lines
    assert target.read_bytes() == written
    assert sorted(path.name for path in file.parent.iterdir()) == ["unnamed", "unnamed.safetensors"]


def test_rounds_the_weights_if_asked_to(doctor, tmp_path):
    digits, target = ROOT / "model" / "digits.safetensors", tmp_path / "rounded.safetensors"
    assert doctor(digits, "--to", target, "--bf16")[0] == 0
    assert target.stat().st_size < 0.55 * digits.stat().st_size
    section = load("digits.yml").Model
    ours, theirs = (load_model(section, path).state_dict() for path in (target, digits))
    assert all(ours[name].dtype == torch.float32 for name in theirs)
    assert all(torch.equal(ours[name], theirs[name].bfloat16().float()) for name in theirs)


@pytest.mark.slow
def test_fits_none(doctor, file):
    tensors = dict(published_weights("ddim_cifar10"))
    tensors["down.0.block.0.norm1.bias"] = torch.zeros(64)
    tensors["another"] = tensors.pop("conv_in.bias")
    other = file.with_name("other")
    torch.save(tensors, other)
    status, lines, errors = doctor(other)
    assert (status, errors) == (1, "")
    assert lines["network"] == "closest is DDIM under the names of DDIM"
    assert lines["fits"] == "no experiment of config/; from ddim_cifar10.yml it differs in 3:"
    assert lines["missing"] == "conv_in.bias" and lines["extra"] == "another"
    assert lines["down.0.block.0.norm1.bias"] == "is (64,), not (128,)"
    status, _, errors = doctor(other, "--to", file.with_name("new.safetensors"))
    assert status == 2 and errors.count("\n") == 1 and "fits no experiment" in errors
    assert not file.with_name("new.safetensors").exists()


@pytest.mark.parametrize(
    "arguments", [["none"], [], ["main.py"], ["main.py", "--to", "there/out.safetensors"], ["main.py", "--bf16"]]
)
def test_wrong_input(doctor, arguments):
    status, lines, errors = doctor(*arguments)
    assert status == 2 and not lines and errors.count("\n") == 1


def test_is_a_command():
    command = [sys.executable, "tools/checkpoint.py", "model/none.ckpt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "checkpoint.py: model/none.ckpt: no such file\n"


@pytest.mark.slow
def test_codes_for_the_terminal_are_not_printed(doctor, file):
    tensors, other = published_weights("ddim_cifar10"), file.with_name("escapes")
    tensors = dict(tensors) | {"\x1b[2Jextra": torch.zeros(1)}
    save(other, tensors, {"weights": "EMA\x1b[31m"})
    status, lines, errors = doctor(other)
    assert (status, errors) == (1, "") and lines["weights"] == "EMA [31m"
    assert lines["extra"] == "[2Jextra"
    other.unlink()


def test_a_network_of_ones_own_is_known_by_its_own_record(doctor, tiny, tmp_path):
    model = load(str(tiny.config)).Model
    save(tmp_path / "own.safetensors", tiny.network.state_dict(), {"Model": model.model_dump(), "weights": "EMA"})
    status, lines, errors = doctor(tmp_path / "own.safetensors", "--to", tmp_path / "again.safetensors")
    assert (status, errors) == (0, "")
    assert lines["fits"] == "no experiment of config/, but what the file itself says"
    assert doctor(tmp_path / "again.safetensors")[0] == 0


def test_how_a_network_was_trained_goes_with_it(doctor, tiny, tmp_path):
    record = {name: getattr(load(str(tiny.config)), name).model_dump() for name in ("Model", "Schedule", "Dataset")}
    record["Schedule"]["type"] = "cosine"
    save(tmp_path / "own.safetensors", tiny.network.state_dict(), record)
    assert doctor(tmp_path / "own.safetensors", "--to", tmp_path / "again.safetensors")[0] == 0
    found = read(tmp_path / "again.safetensors").record
    assert (found["Schedule"], found["Dataset"]) == (record["Schedule"], record["Dataset"])


def test_a_folder_of_diffusers_with_its_schedule_or_not_at_all(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    diffusers.UNet2DModel(8, 1, 1, layers_per_block=1, block_out_channels=(32, 32), **blocks).save_pretrained(tmp_path)
    source = read(tmp_path)
    diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path)
    assert tool.training_record(source)["Schedule"]["type"] == "cosine"
    for settings, said in (
        ({"prediction_type": "v_prediction"}, "predicts v_prediction, not ε; a converted file would not say so"),
        ({"num_train_timesteps": 2, "trained_betas": [0.1, 0.2]}, "no converted file can say its noise schedule"),
    ):
        diffusers.DDIMScheduler(**settings).save_pretrained(tmp_path)
        with pytest.raises(InputError, match=said):
            tool.training_record(source)
