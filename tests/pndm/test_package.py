"""What is installed, what is typed, and what README and docs show of both."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

import pndm

# Files with the names of this project's rooms, each of which raises when it is imported.
OWN_FILES = ("config.py", "model.py", "dataset.py", "main.py", "runner.py", "tools.py")
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]


def run(*command, **more):
    """Run a command that must succeed; returns what it printed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project's files, so that building leaves nothing in the checkout."""
    pytest.importorskip("setuptools", minversion="70.1")
    ignored = shutil.ignore_patterns(".*", "temp", "build", "tests", "docs", "__pycache__", "*.egg-info")
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "project", ignore=ignored)


def site_of(python):
    """The site-packages of an environment."""
    (site,) = python.parent.parent.glob("lib/python*/site-packages")
    return site


def environment(folder):
    """A new virtual environment without pip that sees the installed requirements; returns its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    (site_of(python) / "requirements.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("-packages"))
    )
    return python


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """An environment with a wheel that was built from an sdist; its Python."""
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    python = environment(folder / "venv")
    run(sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, sdist)
    return python


@pytest.fixture(scope="module")
def editable(source, tmp_path_factory):
    """An environment with `pip install -e`; its Python."""
    python = environment(tmp_path_factory.mktemp("editable") / "venv")
    run(sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, "-e", source)
    return python


@pytest.fixture
def elsewhere(tmp_path):
    """Run a command from a user's folder that has modules of the rooms' names: elsewhere(part, …)."""
    for name in OWN_FILES:
        (tmp_path / name).write_text("raise ImportError('the file of the user')\n")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def start(*command):
        command = [str(part) for part in command]
        return subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)

    return start


def test_the_installed_command_samples_from_any_folder(wheel, elsewhere, tmp_path):
    command = (wheel.parent / "pndm", "--device", "cpu", "--batch_size", 10, "--total_num", 10)
    done = elsewhere(*command, "--sample_speed", 5)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "temp" / "sample" / "digits_F-PNDM_5").glob("0*.png"))) == 10
    done = elsewhere(*command, "--method", "PNDM")
    assert done.returncode == 2
    assert done.stderr.startswith("pndm: --method: ")
    assert done.stderr.count("\n") == 1


USE = """
import sys; sys.modules["diffusers"] = None
import pndm
pipeline = pndm.PNDMPipeline.from_pretrained("digits.yml")
print(pipeline(2, 3, output_type="pt").images.shape)
try: pndm.MethodScheduler
except ImportError as error: print(error)
print(pndm.__file__)
"""


@pytest.mark.parametrize("installation", ["wheel", "editable"])
def test_the_package_is_whole_and_does_not_need_diffusers(installation, request, elsewhere, source):
    python = request.getfixturevalue(installation)
    done = elsewhere(python, "-c", USE)
    assert done.returncode == 0, done.stderr
    shape, said, file = done.stdout.splitlines()
    assert shape == "torch.Size([2, 1, 8, 8])"
    assert said == "MethodScheduler needs diffusers, which is not installed: pip install diffusers"
    assert Path(file).is_relative_to(source if installation == "editable" else python.parent.parent)


def test_an_installation_adds_one_name_and_every_file(wheel):
    site = site_of(wheel)
    names = {path.name.split("-")[0] for path in site.iterdir()}
    assert names == {"pndm", "requirements.pth"}
    for room in ("config", "dataset", "model", "pndm", "runner"):
        there = {path.relative_to(ROOT / room) for path in (ROOT / room).rglob("*") if "__pycache__" not in path.parts}
        inside = site / "pndm" / ("" if room == "pndm" else room)
        assert {path for path in there if not (inside / path).exists()} == set()
    assert (site / "pndm" / "py.typed").exists()


def test_tools_run_as_files_after_an_editable_installation(editable, elsewhere, tmp_path):
    done = elsewhere(editable, ROOT / "tools" / "example.py", "--steps", 2, "--out", tmp_path / "example.png")
    assert done.returncode == 0, done.stderr


TYPED = """
import torch
from pndm import InputError, MethodScheduler, PNDMPipeline, Schedule
from pndm import frechet_distance, load_experiment, load_model, solve, trajectory
reveal_type(load_experiment("digits.yml"))  # pndm.config.schema.Experiment
reveal_type(InputError("wrong", "Sample.nfe"))  # pndm.config.errors.InputError
schedule = Schedule("linear")
network = load_model(None, "folder")
for state in solve("F-PNDM", network, torch.zeros(1), schedule, 20):
    reveal_type(state)  # pndm.*State
for event in trajectory("DDIM", torch.zeros(1), schedule, 10):
    reveal_type(event)  # pndm.*Query.*Draw.*Step
pipeline = PNDMPipeline.from_pretrained("digits.yml", device="cpu").to("cpu")
reveal_type(pipeline)  # pndm.pipeline.PNDMPipeline
reveal_type(frechet_distance(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1)))  # float
scheduler = MethodScheduler(method="S-PNDM")
reveal_type(scheduler)  # pndm.scheduler.MethodScheduler
scheduler.set_timesteps(10)
reveal_type(scheduler.step_index)  # int
solve("F-PNDM", network, torch.zeros(1), schedule, "20")  # incompatible type "str"; expected "int"
pipeline(method=4)  # incompatible type "int"; expected "str"
MethodScheduler(method=4)  # incompatible type "int"; expected "str"
scheduler.set_timesteps("10")  # incompatible type "str"; expected "int
Schedule(beta_start="0.1")  # incompatible type "str"; expected "float"
"""


def test_public_names_are_typed(wheel, tmp_path):
    """By mypy, on a user's file beside an installed wheel. To read the types of other packages would take a minute."""
    pytest.importorskip("mypy")
    others = ["torch", "numpy", "diffusers", "PIL", "scipy", "pydantic", "safetensors", "yaml", "tqdm", "sklearn"]
    settings = "[mypy]\nfollow_imports = silent\nignore_missing_imports = True\n"
    settings += "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in others)
    (tmp_path / "mypy.ini").write_text(settings)
    (tmp_path / "user.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), "user.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"MYPYPATH": str(site_of(wheel))}, capture_output=True, text=True
    )
    for line, said in enumerate(TYPED.splitlines(), 1):
        if "  # " in said:
            assert re.search(rf"^user.py:{line}: .*{said.split('  # ')[1]}", done.stdout, re.M), (said, done.stdout)
    assert done.stdout.count("error:") == TYPED.count("incompatible"), done.stdout


def test_every_public_name_is_documented():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "python.md").read_text()
    for name in pndm.__all__:
        assert f"`{name}" in text, name
        assert getattr(pndm, name).__doc__, name
