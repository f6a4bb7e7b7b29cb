"""What is installed, what is typed, and what README and docs show of both."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

import pndm


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the project is installed into, from a copy, without its requirements and without a network."""
    pytest.importorskip("setuptools", minversion="70.1")
    folder = tmp_path_factory.mktemp("installed")
    ignored = shutil.ignore_patterns(".*", "temp", "build", "tests", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "install", *flags, "--target", folder / "site", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "source")
    return folder / "site"


def elsewhere(installed, tmp_path, *command):
    """Run an installed command or Python code from a folder that has nothing of the project."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )


def test_the_installed_command_samples_from_any_folder(installed, tmp_path):
    command = (installed / "bin" / "pndm", "--device", "cpu", "--batch_size", 10, "--total_num", 10)
    done = elsewhere(installed, tmp_path, *command, "--sample_speed", 5)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "temp" / "sample" / "digits_F-PNDM_5").glob("0*.png"))) == 10
    done = elsewhere(installed, tmp_path, *command, "--method", "PNDM")
    assert done.returncode == 2
    assert done.stderr.startswith("pndm: --method: Sample.method is 'PNDM'")
    assert done.stderr.count("\n") == 1


def test_the_installed_package_is_whole_and_does_not_need_diffusers(installed, tmp_path):
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import pndm, config, dataset, model, runner, main\n"
        "pipeline = pndm.PNDMPipeline.from_pretrained('digits.yml')\n"
        "print(pipeline(2, 3, output_type='pt').images.shape, pndm.__file__)\n"
        "try: pndm.MethodScheduler\n"
        "except ImportError as error: print(error)\n"
    )
    done = elsewhere(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    shape, said = done.stdout.splitlines()
    assert shape == f"torch.Size([2, 1, 8, 8]) {installed / 'pndm' / '__init__.py'}"
    assert said == "MethodScheduler needs diffusers, which is not installed: pip install diffusers"
    for name in ("config", "dataset", "model", "pndm", "runner"):
        there = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts}
        assert {path for path in there if not (installed / name / path).exists()} == set()
        assert (installed / name / "py.typed").exists()


TYPED = """
import torch
from pndm import MethodScheduler, PNDMPipeline, Schedule, frechet_distance, load_model, solve, trajectory
schedule = Schedule("linear")
network = load_model(None, "folder")
for state in solve("F-PNDM", network, torch.zeros(1), schedule, 20):
    reveal_type(state)  # runner.method.State
for event in trajectory("DDIM", torch.zeros(1), schedule, 10):
    reveal_type(event)  # runner.events.Query.*runner.events.Draw.*runner.events.Step
pipeline = PNDMPipeline.from_pretrained("digits.yml", device="cpu").to("cpu")
reveal_type(pipeline)  # runner.pipeline.PNDMPipeline
reveal_type(frechet_distance(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1)))  # float
scheduler = MethodScheduler(method="S-PNDM")
reveal_type(scheduler)  # runner.scheduler.MethodScheduler
scheduler.set_timesteps(10)
reveal_type(scheduler.step_index)  # int
solve("F-PNDM", network, torch.zeros(1), schedule, "20")  # incompatible type "str"; expected "int"
pipeline(method=4)  # incompatible type "int"; expected "str"
MethodScheduler(method=4)  # incompatible type "int"; expected "str"
scheduler.set_timesteps("10")  # incompatible type "str"; expected "int
Schedule(beta_start="0.1")  # incompatible type "str"; expected "float"
"""


def test_public_names_are_typed(tmp_path):
    """By mypy, on a user's file; the types of other packages, which it would read for a minute, left out."""
    pytest.importorskip("mypy")
    others = ["torch", "numpy", "diffusers", "PIL", "scipy", "pydantic", "safetensors", "yaml", "tqdm", "sklearn"]
    settings = "[mypy]\nfollow_imports = silent\nignore_missing_imports = True\n"
    settings += "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in others)
    (tmp_path / "mypy.ini").write_text(settings)
    (tmp_path / "user.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), "user.py"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    for line, said in enumerate(TYPED.splitlines(), 1):
        if "  # " in said:
            assert re.search(rf"^user.py:{line}: .*{said.split('  # ')[1]}", done.stdout, re.M), (said, done.stdout)
    assert done.stdout.count("error:") == TYPED.count("incompatible"), done.stdout


def test_every_public_name_is_documented():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "diffusers.md").read_text()
    for name in pndm.__all__:
        assert f"`{name}" in text, name
        assert getattr(pndm, name).__doc__, name
