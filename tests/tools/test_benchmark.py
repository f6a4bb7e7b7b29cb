"""The benchmarks run, and their figures are of the same thing."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))


def test_frechet(tmp_path, capsys):
    pytest.importorskip("pytorch_fid")
    import benchmark

    file = tmp_path / "frechet.json"
    benchmark.main(["frechet", "--dimension", "24", "--images", "200", "--repeat", "2", "--json", str(file)])
    figures = json.loads(file.read_text())
    assert len(figures["rounds"]) == 2 and all(r["difference"] < 1e-8 for r in figures["rounds"])
    assert figures["dimension"] == 24 and figures["machine"]["threads"] >= 1
    assert "median ratio" in capsys.readouterr().out
