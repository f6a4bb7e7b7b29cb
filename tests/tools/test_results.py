"""A page's numbers are rewritten between the marks, and nothing else of it."""

import pytest
from helpers import ROOT

from pndm.tools import results


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "table"
    (folder / "figures").mkdir(parents=True)
    for name in ("distance_steps.png", "distance_steps.svg", "images.png", "images.svg"):
        (folder / "figures" / name).write_text(name)
    (folder / "cells.csv").write_text("label,steps\n")
    shown = "\n".join(f"![{name}](figures/{name})" for name in ("distance_steps.svg", "images.png"))
    (folder / "table.md").write_text(f"# made up\n\nA distance.\n\n| a |\n| --- |\n| 1 |\n\n{shown}\n")
    (folder / "flow.json").write_text("[]")
    return folder


def test_numbers_are_put_between_the_marks_however_often(table, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\nBefore.\n\n{results.BEGIN}old\n{results.END}\nAfter.\n")
    (tmp_path / "page").mkdir()
    for name in ("no_longer_drawn.svg", "flow.json"):  # the table has no figure of the flow any more
        (tmp_path / "page" / name).write_text("")
    for _ in range(2):
        assert results.main([str(table), str(page)]) == 0
        text = page.read_text()
        assert text.startswith("# Page\n\nBefore.\n")
        assert text.endswith("After.\n")
        assert text.count("| 1 |") == text.count("(page/distance_steps.svg)") == text.count("(page/images.png)") == 1
        assert "old" not in text
        assert "made up" not in text
    held = {path.name: path.read_text() for path in (tmp_path / "page").iterdir()}
    assert held == {name: name for name in ("distance_steps.svg", "images.png")} | {"cells.csv": "label,steps\n"}


def test_distances_to_the_flow_go_with_their_figure(table, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{results.BEGIN}{results.END}")
    (table / "figures/flow_calls.svg").write_text("")
    with open(table / "table.md", "a") as file:
        file.write("![flow](figures/flow_calls.svg)\n")
    assert results.main([str(table), str(page)]) == 0
    assert (tmp_path / "page/flow.json").read_text() == "[]"


def test_a_page_without_marks_is_left_alone(table, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    assert results.main([str(table), str(page)]) == 2
    assert "do not stand in it" in capsys.readouterr().err
    assert page.read_text() == "# Page\n"
    assert not (tmp_path / "page").exists()


def test_the_page_in_docs_has_its_marks():
    text = (ROOT / "docs" / "results-digits.md").read_text(encoding="utf-8")
    assert text.index(results.BEGIN) < text.index(results.END)
