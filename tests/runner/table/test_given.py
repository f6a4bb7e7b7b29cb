"""Cells taken from another folder's cells.csv in place of being run."""

import csv
import json

import pytest
import yaml

from pndm.runner.table import figures

METHODS = ["DDIM", {"label": "1e-2", "method": "PF", "rtol": 0.01, "atol": 0.01}]


@pytest.fixture
def table(tiny, tmp_path, monkeypatch):
    """Write a table of the tiny network; table(folder, key=value, …) → the flags that run it into `folder`."""
    monkeypatch.setattr(figures, "save", lambda drawn, folder: {})

    def write(folder, **changes):
        keys = {"methods": METHODS, "steps": [4, 6], "profiles": ["exact", "published"], "images": 18, "seeds": 2}
        path = tmp_path / "small.yml"
        path.write_text(yaml.safe_dump({"experiment": str(tiny.config), "flow": 0} | keys | changes))
        flags = ["--runner", "reproduce", "--table", path, "--device", "cpu", "--image_path", tmp_path / folder]
        return [str(flag) for flag in flags]

    return write


def records(folder):
    return {file.parent.name: json.loads(file.read_text()) for file in folder.glob("cells/*/result.json")}


def images(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.glob("cells/*/0*.png")}


def lines_of(folder):
    with open(folder / "cells.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_taken_cell_has_the_record_and_the_images_of_the_run_one(table, cli, tmp_path):
    assert cli(*table("whole"))[0] == 0
    status, out, _ = cli(*table("taken"), "--cells", tmp_path / "whole/cells.csv")
    assert (status, "8 cells, 0 of them finished, 8 from" in out) == (0, True)
    assert records(tmp_path / "taken") == records(tmp_path / "whole")
    assert images(tmp_path / "taken") == images(tmp_path / "whole")
    assert (tmp_path / "taken/cells.csv").read_bytes() == (tmp_path / "whole/cells.csv").read_bytes()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("taken/cells/*/*")}
    assert "8 of them finished" in cli(*table("taken"))[1]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("taken/cells/*/*")} == before


def test_a_method_of_ones_own_stands_beside_taken_cells(table, cli, tmp_path):
    assert cli(*table("whole", profiles=["exact"]))[0] == 0
    flags = table("more", profiles=["exact"], methods=["F-PNDM", "DDIM"], steps=[4])
    status, out, _ = cli(*flags, "--cells", tmp_path / "whole/cells.csv", "--methods", "F-PNDM", "--seeds", 1)
    assert (status, "3 cells, 0 of them finished, 2 from" in out) == (0, True)
    assert set(records(tmp_path / "more")) == {"F-PNDM_4_exact_seed0", "DDIM_4_exact_seed0", "DDIM_4_exact_seed1"}
    plan = cli(*flags, "--cells", tmp_path / "whole/cells.csv", "--plan")[1]
    assert "F-PNDM" in plan
    assert "DDIM" not in plan


def test_only_the_kept_images_of_a_taken_cell_are_made(table, cli, tmp_path):
    keys = {"profiles": ["exact"], "methods": ["DDIM"], "steps": [4], "seeds": 1, "sample": {"keep": 0}}
    assert cli(*table("whole", **keys))[0] == 0
    [line] = lines_of(tmp_path / "whole")
    changed = line | {"distance": "7.5", "mean_over_seeds": "7.5", "frechet.value": "7.5"}
    write(tmp_path / "given.csv", [changed])
    assert cli(*table("taken", **keys), "--cells", tmp_path / "given.csv")[0] == 0
    assert lines_of(tmp_path / "taken") == [changed | {"least_over_seeds": "7.5"}]
    assert images(tmp_path / "taken") == {}


def test_a_cell_that_was_compiled_is_taken(table, cli, tmp_path):
    keys = {"profiles": ["exact"], "methods": ["DDIM"], "steps": [4], "seeds": 1}
    assert cli(*table("whole", **keys))[0] == 0
    [line] = lines_of(tmp_path / "whole")
    write(tmp_path / "given.csv", [line | {"compile": "True", "config.Sample.compile": "True"}])
    assert cli(*table("taken", **keys), "--cells", tmp_path / "given.csv")[0] == 0
    assert lines_of(tmp_path / "taken")[0]["compile"] == "True"


def write(path, lines):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("config.Sample.batch_size", "5", "Sample.batch_size is 5 there"),
        ("config.Model.ch_mult", "[1, 3]", "Model.ch_mult is [1, 3] there"),
        ("checkpoint.sha256", "0" * 64, "checkpoint is 000000000000… there"),
        ("precision", "fp16", "precision is fp16 there"),
        ("solver.sha256", "1" * 64, "solver is 111111111111… there"),
        ("frechet.reference.images", "12", "its reference has changed since"),
        ("frechet.reference.images", "", "its reference has changed since"),
        ("config.Sample", "5", "damaged, or of another version"),
        ("frechet.value", "much", "damaged, or of another version"),
        ("frechet.value", "1e999", "damaged, or of another version"),
        ("frechet.value", "-1.0", "damaged, or of another version"),
        ("made", "0", "damaged, or of another version"),
        ("seconds", "", "damaged, or of another version"),
    ],
)
def test_a_cell_of_another_run_is_refused_and_nothing_is_written(table, cli, tmp_path, column, value, says):
    keys = {"profiles": ["exact"], "methods": ["DDIM"], "steps": [4], "seeds": 1}
    assert cli(*table("whole", **keys))[0] == 0
    [line] = lines_of(tmp_path / "whole")
    if column not in line:
        line = {name: text for name, text in line.items() if not name.startswith(f"{column}.")}
    write(tmp_path / "given.csv", [line | {column: value}])
    status, _, err = cli(*table("taken", **keys), "--cells", tmp_path / "given.csv")
    assert status == 2
    assert says in err
    assert err.count("\n") == 1
    assert err.startswith(f"main.py: --cells: {tmp_path / 'given.csv'}: DDIM_4_exact_seed0")
    assert not (tmp_path / "taken").exists()


def test_a_table_by_calls_takes_what_one_by_steps_made_in_as_many_calls(table, cli, tmp_path):
    """DDIM makes 4 calls in 4 steps, S-PNDM 5."""
    keys = {"methods": ["DDIM", "S-PNDM"], "profiles": ["exact"], "seeds": 1}
    assert cli(*table("whole", **keys, steps=[4]))[0] == 0
    flags = table("taken", **keys, steps=[], nfe=[4, 5])
    status, out, _ = cli(*flags, "--cells", tmp_path / "whole/cells.csv")
    assert (status, "4 cells, 0 of them finished, 2 from" in out) == (0, True)
    whole, taken = records(tmp_path / "whole"), records(tmp_path / "taken")
    for before, after in (
        ("DDIM_4_exact_seed0", "DDIM_nfe4_exact_seed0"),
        ("S-PNDM_4_exact_seed0", "S-PNDM_nfe5_exact_seed0"),
    ):
        assert whole[before]["frechet"] == taken[after]["frechet"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory"),
        (b"", "none of the table's cells is in it"),
        (b"label,profile,seed\nDDIM,exact,0\n", "no column budget; not a cells.csv, or of an older version"),
        (b"label,profile,budget,seed,nfe\nDDIN,exact,4,0,4\n", "none of the table's cells is in it"),
        (b"label,profile,budget,seed,nfe\nDDIM,exact,4,0\n", "line 2: not as long as the first line"),
        (b"label,profile,budget,seed,nfe\nDDIM,exact,4,0,4,1\n", "line 2: not as long as the first line"),
        (b"label,profile,budget,seed,nfe\nDDIM,exact,4,0,4\n", "damaged, or of another version"),
        (b"\xff\xfe\x00", "not a cells.csv"),
        (b'label\n"open', "not a cells.csv"),
        (b"label," + b"9" * 200_000 + b"\n1,2\n", "not a cells.csv"),
    ],
)
def test_what_is_no_cells_csv_is_one_line(table, cli, tmp_path, content, says):
    if content is not None:
        (tmp_path / "given.csv").write_bytes(content)
    status, _, err = cli(*table("taken"), "--cells", tmp_path / "given.csv")
    assert status == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "taken").exists()


def test_the_plan_of_a_table_whose_cells_are_all_given_is_empty(table, cli, tmp_path):
    keys = {"profiles": ["exact"], "methods": ["DDIM"], "steps": [4], "seeds": 1}
    assert cli(*table("whole", **keys))[0] == 0
    status, out, _ = cli(*table("taken", **keys), "--cells", tmp_path / "whole/cells.csv", "--plan")
    assert status == 0
    assert "cells.csv: 1; of these only the images that are kept are made again" in out
