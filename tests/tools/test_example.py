"""The example runs, and the tool that measures differences finds them."""

import re

import pytest
from helpers import ROOT
from PIL import Image

from pndm.tools import example


@pytest.mark.parametrize(("method", "calls"), [("S-PNDM", 6), ("DDPM", 5)])
def test_example(tmp_path, capsys, method, calls):
    status = example.main(["--method", method, "--steps", "5", "--out", str(tmp_path / "new" / "example.png")])
    *_, state, difference, _ = capsys.readouterr().out.splitlines()
    assert status == 0
    assert state.startswith(f"t =   -1.0, {calls} network calls")
    assert float(difference.split(": ")[1]) == 0
    assert Image.open(tmp_path / "new" / "example.png").size > (256, 256)


def test_an_example_of_no_steps_is_one_line(tmp_path, capsys):
    assert example.main(["--steps", "0", "--out", str(tmp_path / "example.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_differences(monkeypatch, capsys):
    pytest.importorskip("diffusers")
    from pndm.tools import differences

    rows = {name: (*keys, counts[:1]) for name, (*keys, counts) in differences.ROWS.items()}
    monkeypatch.setattr(differences, "ROWS", rows)
    differences.main(["--images", "1"])
    table = capsys.readouterr().out
    found = {row[0]: float(row[-1]) for row in (line.strip("| ").split(" | ") for line in table.splitlines()[2:])}
    none, *others = found.values()
    assert none < 1e-5
    assert min(others) > 100 * none
    page = (ROOT / "docs" / "diffusers.md").read_text()
    assert re.findall(r"^\| (\S.*?) \| \d", table, re.M) == [name for name in found if f"| {name} |" in page]
