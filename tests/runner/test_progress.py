"""How far a run is, where there is no terminal."""

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
