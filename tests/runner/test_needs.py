"""What runs need: listed all at once, downloaded at first use, and the whole way of a table from nothing."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from helpers import ROOT

from pndm.runner.measure.statistics import Moments

FLAGS = ("--device", "cpu", "--total_num", "4", "--batch_size", "4", "--method", "DDIM", "--sample_speed", "2")


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An empty folder, and nothing in the caches of other libraries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def tiny_published(tiny, publish, server, tmp_path):
    """The tiny network and statistics of it on the server, and mine.yml, an experiment whose network is not here."""
    server.files["/tiny"] = tiny.model.read_bytes()
    tree = yaml.safe_load(tiny.config.read_text())
    tree["Sample"]["model_path"] = "temp/models/tiny.safetensors"
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(tree))
    publish("tiny_network", f"{server.url}/tiny", path="models/tiny.safetensors", licence="MIT")
    return tmp_path


def test_all_that_a_table_lacks_is_one_list(bare, cli):
    status, out, err = cli("--runner", "check", "--table", "celeba")
    assert (status, err) == (2, "main.py: 3 of 3 cannot be had: network, Inception, statistics\n")
    lines = out.splitlines()
    assert [line.split()[2] for line in lines[:3]] == ["network", "Inception", "statistics"]
    for line, place in zip(
        lines, ("models/ddim_celeba.ckpt", "models/pt_inc", "stats/fid_celeba_train.npz"), strict=False
    ):
        assert line.startswith("by hand") and f"no file temp/{place}" in line and "it is at https://" in line
    assert lines[3:] == ["0 there, 0 online, 3 by hand"]
    assert list(bare.iterdir()) == []


@pytest.mark.slow
def test_with_a_connection_the_same_can_be_downloaded_and_nothing_is_asked(bare, cli, monkeypatch):
    pytest.importorskip("gdown")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("pndm.runner.fetch.download", lambda *_: pytest.fail("something was downloaded"))
    for runner in (["--runner", "check"], ["--runner", "fetch", "--plan"]):
        status, out, _ = cli(*runner, "--table", "celeba")
        assert status == 0
        assert out.splitlines()[0] == (
            "online    network     temp/models/ddim_celeba.ckpt, about 315 MB from Google Drive"
        )
        assert out.splitlines()[-1] == "0 there, 3 online, 0 by hand; about 445 MB to download"
    monkeypatch.setitem(sys.modules, "gdown", None)
    status, out, _ = cli("--runner", "check", "--table", "celeba")
    assert status == 2 and "(Google Drive: it needs gdown: pip install gdown)" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "there     network     {root}/model/digits.safetensors\nthere     dataset     DIGITS\n2 there"),
        (
            ["--config", "ddim_cifar10.yml"],
            "by hand   network     no file temp/models/ddim_cifar10.ckpt; it is at https://h",
        ),
        (["--config", "folder.yml"], "by hand   network     no checkpoint is given"),
        (["--model_path", "nothing.ckpt"], "by hand   network     no file nothing.ckpt"),
        (
            ["--model_path", "google/ddpm-cifar10-32"],
            "by hand   network     no file google/ddpm-cifar10-32 in the hub's",
        ),
        (["--statistics", "nothing.npz"], "by hand   statistics  no file nothing.npz; --runner stats makes it"),
        (["--inception_path", "nothing", "--features", "inception"], "by hand   Inception   no file nothing; incep"),
        (["--set", "Dataset.dataset=CELEBA"], "by hand   dataset     Dataset.dataset CELEBA: its files are not in"),
    ],
)
def test_an_experiment_is_checked(bare, cli, flags, said):
    status, out, err = cli("--runner", "check", *flags)
    assert said.format(root=ROOT) in out
    assert (status, "cannot be had: " in err) == ((2, True) if "by hand   " in out else (0, False))
    assert err.count("\n") == bool(err)


def test_the_network_that_training_begins_with_is_needed_too(bare, cli):
    flags = ["--set", "Train.start=ema_cifar10"]
    status, out, err = cli("--runner", "check", *flags)
    assert (status, err) == (2, "main.py: 1 of 3 cannot be had: start\n")
    assert "by hand   start       no file temp/models/ema_cifar10.ckpt; it is at https://" in out
    assert "Train.start" not in cli("--runner", "check", "--table", "digits", *flags)[1]


def test_the_whole_manifest_is_listed(bare, cli):
    status, out, _ = cli("--runner", "fetch")
    assert status == 0
    assert "ema_cifar10                         about 143 MB          network of CIFAR10 32×32" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--runner", "fetch", "nonsense"], "nothing is published as nonsense; config/published.yml lists"),
        (["--runner", "fetch", "--features", "inception"], "but no experiment; --config names one"),
        (["--runner", "check", "--table", "celeba", "--config", "digits.yml"], "--config: digits.yml: a table names"),
        (["--runner", "check", "ema_cifar10"], "path ema_cifar10 does not go with --runner check"),
        (
            ["--model_path", "temp/models/ema_cifar10.ckpt"],
            "--model_path: no file temp/models/ema_cifar10.ckpt; --model",
        ),
        (["--set", "Sample.model_path=5"], "--set: Sample.model_path is 5; "),
        (["--statistics", "temp/stats/fid_celeba_train.npz"], "--statistics: no file temp/stats/fid_celeba_train.npz"),
        (
            ["--model_path", "ema_cifar10"],
            "--model_path: ema_cifar10 could not be downloaded (heibox.uni-heidelberg.de: off",
        ),
        (
            ["--config", "ddim_celeba.yml"],
            "ddim_celeba.yml: ddim_celeba could not be downloaded (Google Drive: offline); put",
        ),
    ],
)
def test_wrong_input_ends_in_one_line_and_writes_nothing(bare, cli, flags, said):
    status, out, err = cli(*flags, "--device", "cpu")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert list(bare.iterdir()) == []


def test_first_use_downloads_what_the_experiment_names_and_says_so(tiny_published, cli, server):
    status, out, err = cli("--config", "mine.yml", *FLAGS, "--image_path", "run")
    assert status == 0, err
    assert err.startswith("tiny_network: downloading file of unknown size from 127.0.0.1")
    assert "licence: MIT" in err.splitlines()[0]
    assert "network from temp/models/tiny.safetensors" in out
    assert cli("--config", "mine.yml", *FLAGS, "--image_path", "run")[0] == 0
    assert len(server.asked) == 1


def test_a_published_name_is_a_model_path_and_the_record_says_which_file_served(tiny_published, cli):
    name = ("--model_path", "tiny_network")
    assert cli("--config", "mine.yml", *FLAGS, *name, "--image_path", "run")[0] == 0
    record = json.loads((tiny_published / "run/result.json").read_text())["checkpoint"]
    assert (record["path"], record["file"]) == ("tiny_network", "temp/models/tiny.safetensors")


def test_a_network_that_changed_since_it_was_downloaded_is_refused(tiny_published, cli):
    assert cli("--runner", "fetch", "tiny_network")[0] == 0
    file = tiny_published / "temp/models/tiny.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    status, _, err = cli("--config", "mine.yml", *FLAGS, "--image_path", "run")
    assert status == 2 and "as when it was downloaded; delete it" in err and err.count("\n") == 1


def test_a_plan_downloads_nothing(tiny_published, cli, server):
    status, out, err = cli("--config", "mine.yml", *FLAGS, "--plan")
    assert status == 0 and "calls an image    2" in out and "a plan downloads nothing" in err
    assert server.asked == []


@pytest.mark.slow
def test_a_table_from_nothing_to_its_report_in_one_command(tiny_published, publish, server, tiny, cli, tmp_path):
    cli("--runner", "stats", "--config", tiny.config, "--features", "pixels", "--out", "made.npz", "--device", "cpu")
    server.files["/stats"] = (tmp_path / "made.npz").read_bytes()
    (tmp_path / "made.npz").unlink()
    publish("made_up_train", f"{server.url}/stats", what="statistics", path="stats/made_up_train.npz")
    sample = {"features": "pixels", "statistics": "temp/stats/made_up_train.npz", "batch_size": 4}
    table = {"experiment": "mine.yml", "methods": ["DDIM", "F-PNDM"], "steps": [4, 5], "images": 4, "sample": sample}
    (tmp_path / "small.yml").write_text(yaml.safe_dump(table | {"flow": 0}))
    command = ["--runner", "reproduce", "--table", "small.yml", "--device", "cpu"]
    status, _, err = cli(*command)
    assert status == 0, err
    report = tmp_path / "temp/reproduce/small/report.html"
    assert report.is_file() and "temp/stats/made_up_train.npz" in report.read_text()
    assert [line.split(":")[0] for line in err.splitlines() if "downloading" in line] == [
        "tiny_network",
        "made_up_train",
    ]
    assert sorted(path for path, _ in server.asked) == ["/stats", "/tiny"]
    assert Moments.load(tmp_path / "temp/stats/made_up_train.npz").mu.shape == (64,)


def test_the_doctor_names_a_file_by_its_hash(tiny_published, cli):
    assert cli("--runner", "fetch", "tiny_network")[0] == 0
    file = tiny_published / "temp/models/tiny.safetensors"
    other = file.rename(tiny_published / "unnamed")
    command = [sys.executable, ROOT / "tools/checkpoint.py", other]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tiny_published, env=environment)
    assert "published   tiny_network: network of numbers, by nobody; licence: MIT" in done.stdout


def test_a_damaged_file_of_a_table_is_named(tiny_published, cli, tmp_path):
    table = {"experiment": "mine.yml", "methods": ["DDIM"], "steps": [4], "images": 4, "sample": {"features": "none"}}
    (tmp_path / "small.yml").write_text(yaml.safe_dump(table))
    assert cli("--runner", "fetch", "--table", "small.yml")[0] == 0
    file = tiny_published / "temp/models/tiny.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    status, _, err = cli("--runner", "fetch", "--table", "small.yml")
    assert status == 2 and "tiny.safetensors: its sha256 is" in err and err.count("\n") == 1
