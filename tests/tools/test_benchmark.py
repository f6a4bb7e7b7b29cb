"""The benchmarks run, and their figures are of the same thing."""

import json

import pytest


def test_frechet(tmp_path, capsys):
    pytest.importorskip("pytorch_fid")
    import benchmark

    file = tmp_path / "frechet.json"
    benchmark.main(["frechet", "--dimension", "24", "--images", "200", "--repeat", "2", "--json", str(file)])
    figures = json.loads(file.read_text())
    assert len(figures["rounds"]) == 2 and all(r["difference"] < 1e-8 for r in figures["rounds"])
    assert figures["dimension"] == 24 and figures["machine"]["threads"] >= 1
    assert "median ratio" in capsys.readouterr().out


@pytest.fixture
def figures(tmp_path):
    """Run a benchmark on the digits network: figures(name, flag, ...) → what it wrote."""
    import benchmark

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
    rows = figures("profile", "--config", "digits.yml", "--batch", "4")["rows"]
    convolution = next(row for row in rows if "convolution" in row["operator"])
    assert convolution["calls"] == 24 and 0 < convolution["share"] < 1


def test_features(figures):
    pytest.importorskip("pytorch_fid")
    assert len(figures("features", "--images", "2")["images_per_second"]) == 1
