"""The benchmarks run, and their figures are of the same thing."""

import json
import sys

import pytest
import torch

from pndm.tools import benchmark, gpu


def test_frechet(tmp_path, capsys):
    pytest.importorskip("pytorch_fid")
    file = tmp_path / "frechet.json"
    benchmark.main(["frechet", "--dimension", "24", "--images", "200", "--repeat", "2", "--json", str(file)])
    figures = json.loads(file.read_text())
    assert len(figures["rounds"]) == 2 and all(r["difference"] < 1e-8 for r in figures["rounds"])
    assert figures["dimension"] == 24 and figures["machine"]["threads"] >= 1
    assert "median ratio" in capsys.readouterr().out


@pytest.fixture
def figures(tmp_path):
    """Run a benchmark on the digits network: figures(name, flag, ...) → what it wrote."""

    def run(*flags):
        benchmark.main([*flags, "--repeat", "1", "--json", str(tmp_path / "figures.json")])
        return json.loads((tmp_path / "figures.json").read_text())

    return run


def test_network(figures, capsys):
    """Three contenders on the same weights: they return the same ε, and are timed on the same number of calls."""
    pytest.importorskip("diffusers")
    flags = ["--config", "fashion.yml", "--batch", "4", "--steps", "2", "--side", "256", "--precision", "fp32"]
    table = figures("network", *flags)["table"]
    assert list(table) == ["here", "plain", "diffusers"] and table["plain"]["ratio"] == 1
    for row in table.values():
        assert row["rms_to_plain"] < 1e-5
        assert 0 < row["outside"] < 1 and row["share_of_product"] > 0 and row["peak_bytes"] > 2**26
    assert "ratio: to the plain loop" in capsys.readouterr().out


def test_profile(figures):
    pytest.importorskip("diffusers")
    found = figures("profile", "--config", "digits.yml", "--batch", "4")
    assert found["convolutions"] == 24
    shares = [row["share"] for row in found["rows"]]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0 and sum(shares) <= 1


def test_features(figures):
    pytest.importorskip("pytorch_fid")
    assert len(figures("features", "--images", "2")["images_per_second"]) == 1


def test_team(figures):
    found = figures("team", "--images", "700", "--dimension", "8")
    assert (found["processes"], found["images"]) == (1, 700)
    assert all(found[name] >= 0 for name in ("reference", "gather", "error", "distance"))
    assert found["most MiB of a process"] > 50


def test_training(figures):
    found = figures("training", "--config", "digits.yml", "--batch", "8", "--steps", "1")
    assert [list(rates) for rates in found["rounds"]] == [["fp32", "bf16"]] and found["gain"] > 0


@pytest.mark.slow
def test_precision(figures):
    """What bfloat16 changes is a grey level or so."""
    rows = figures("precision", "--images", "4")["rows"]
    assert len(rows) == 12 and all(0 < row["rms"] < 8 and abs(row["black"]) < 1 for row in rows)


def test_every_part_of_gpu(figures, capsys):
    """At reduced size, on any device."""
    pytest.importorskip("pytorch_fid")
    found = figures("gpu", "--small")
    assert not [name for name in gpu.PARTS if "error" in found[name]] and found["tests"]["status"] == 0
    assert found["products"]["bfloat16"] > 0
    fast, plain = found["networks"]
    assert fast["images_per_second"] > 0 and 0 < plain["share_of_product"] < 1
    assert 0 < sum(plain["profile"].values()) <= 1 and "profile" not in fast
    assert found["measuring"]["features_per_second"] > 0 and found["measuring"]["summed_per_second"] > 0
    assert [row["precision"] for row in found["training"]] == ["fp32", "bf16"]
    assert (found["whole"]["images"], found["whole"]["nfe"]) == (4, 13)
    shown = capsys.readouterr().out
    assert all(f"\n{name} (" in shown for name in gpu.PARTS) and "convolution" in shown


def test_a_part_of_gpu_that_fails_leaves_the_others(figures, monkeypatch):
    monkeypatch.setattr(gpu, "PARTS", {"networks": gpu.networks, "killed": Killed(), "products": gpu.products})
    monkeypatch.setattr(gpu.SMALL, "networks", [("no-such.yml", 4, "fp32", "")])
    found = figures("gpu", "--small")
    assert found["networks"]["error"].startswith("InputError: no file no-such.yml")
    assert found["killed"] == {"error": "its process ended with status 3"}
    assert found["products"]["side"] == 128
    monkeypatch.setattr(gpu.time, "monotonic", iter(range(0, 10**6, 600)).__next__)
    assert "no time left" in figures("gpu", "--small")["products"]["error"]


class Killed:
    """A part whose process ends where it is unpickled."""

    def __reduce__(self):
        return sys.exit, (3,)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would begin")
def test_gpu_without_one(capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.main(["gpu"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "benchmark.py: gpu needs an NVIDIA GPU; --small runs every part, at reduced size, on a CPU\n"
    )
