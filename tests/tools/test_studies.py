"""The studies print tables, and what their pages say of them holds."""

import pytest

from pndm.tools import studies


@pytest.fixture
def table(capsys):
    """Run a study: table(name, flag, ...) → its rows, as lists of text; the first has the names of the columns."""

    def run(*flags):
        studies.main([*flags])
        head, rule, *rows = capsys.readouterr().out.splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]
        assert set(rule) == {"|", "-"} and len({len(row) for row in cells}) == 1
        return cells

    return run


@pytest.mark.slow
def test_flow(table):
    """On their way the methods of higher order are nearer to the flow than DDIM; most of their error is of the end."""
    head, *rows = table("flow", "--images", "1", "--steps", "50")
    found = {row[0]: dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in rows}
    assert list(found) == ["DDIM", "S-PNDM", "F-PNDM", "FON"]
    for name in ("S-PNDM", "F-PNDM", "FON"):
        assert found[name]["t = 100"] < 0.3 * found["DDIM"]["t = 100"]
        assert found[name]["t = 0"] > 3 * found[name]["t = 100"]


def test_error(table):
    """The errors claimed are as large as the spread where images are many, larger where they are few."""
    _, *rows = table("error", "--drawings", "40")
    ratios = [float(row[5]) / float(row[4]) for row in rows]
    assert 0.7 < ratios[0] < 1.4 and 0.7 < ratios[1] < 1.4
    assert ratios[2] > 1.5


@pytest.mark.slow
def test_preview(table):
    """The exact flow that the demo shows is known to 0.002."""
    _, *rows = table("preview", "--images", "1")
    assert [row[0] for row in rows] == ["float64", "float64", "float32", "float32"]
    assert [float(row[5]) for row in rows[:2]] == [0, 0]
    assert all(0 < float(row[5]) < 0.002 for row in rows[2:])


def test_noise(table):
    """bh2 is nearer than DDIM from σ = 1; bh1 may be far off in few steps."""
    _, *rows = table("noise")
    for _, _, ddim, _, bh2 in rows:
        assert float(bh2) < 0.6 * float(ddim)
    far = [row for row in rows if row[:2] == ["4", "5"]]
    assert float(far[0][3]) > 3 * float(far[0][2])


@pytest.mark.parametrize("flags", [["error", "--drawings", "0"], ["nothing"], []])
def test_wrong_flags_are_refused(capsys, flags):
    with pytest.raises(SystemExit) as end:
        studies.main(flags)
    assert end.value.code == 2
    assert capsys.readouterr().err
