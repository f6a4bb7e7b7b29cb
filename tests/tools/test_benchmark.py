"""The benchmarks run, and their figures are of the same thing."""

import json

import pytest

from pndm.tools import benchmark


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
    flags = ["--config", "digits.yml", "--batch", "4", "--steps", "2", "--side", "256", "--precision", "fp32"]
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
