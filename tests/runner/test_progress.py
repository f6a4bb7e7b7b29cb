"""How far a run is, where there is no terminal."""

import pytest
import torch

from pndm.runner import progress
from pndm.runner.processes import Processes


def test_without_a_terminal_a_line_says_what_how_far_and_how_fast(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", -1.0)
    with progress.Progress(Processes(torch.device("cpu")), 40, " images", "sampling") as bar:
        bar.add(10, extra="step 3/50", force=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("sampling:  25%")
    assert "10/40" in lines[0] and "images/s" in lines[0] and "step 3/50" in lines[0]


def test_often_asked_it_says_nothing_before_half_a_minute(capsys):
    with progress.Progress(Processes(torch.device("cpu")), 40, " images", "sampling") as bar:
        for _ in range(40):
            bar.add(1)
    assert capsys.readouterr().err == ""


def test_work_of_unknown_amount_has_no_share_and_no_end(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", -1.0)
    with progress.Progress(Processes(torch.device("cpu")), None, " image×calls", "search") as bar:
        bar.add(1500, extra="4 calls: 0.08", force=True)
        line = bar.line(seconds=60.0, columns=80)
    said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith("search: 1500 image×calls 00:00, ") and said.endswith("image×calls/s, 4 calls: 0.08")
    assert line.startswith("search: 1500 image×calls 01:00, 25.00") and "%" not in line


@pytest.mark.parametrize(
    ("unit", "name", "extra"),
    [
        (" steps", "training", "loss 0.0123, 2560 images/s"),
        (" steps", "training", "distance of 10,000 images"),
        (" images", "sampling", "step 12/50"),
    ],
)
def test_a_terminal_of_80_columns_shows_all_that_is_said(unit, name, extra):
    with progress.Progress(Processes(torch.device("cpu")), 33600, unit, name) as bar:
        bar.add(1234, extra=extra, force=True)
        line = bar.line(seconds=5000.0, columns=80)
    assert len(line) <= 80 and line.endswith(extra)
