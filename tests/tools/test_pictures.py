"""The scripts that make the pictures of the pages, and the images for a first training."""

import csv
import re
import shutil

import matplotlib
import numpy as np
import pytest
from helpers import ROOT, image_files
from PIL import Image

from pndm.tools import crops, pictures


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """A folder with docs/pictures/, in which the test runs."""
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "docs" / "pictures"


def same_picture(made):
    """Assert that a picture is the one in docs/, if both are by the same release of matplotlib."""
    there = (ROOT / "docs" / "pictures" / made.name).read_bytes()
    if f"Matplotlib v{matplotlib.__version__}".encode() in there:
        assert made.read_bytes() == there


def test_the_gain_in_readme_is_that_of_the_table(pages, capsys):
    tables = [ROOT / "docs" / name / "cells.csv" for name in ("results-fashion", "results-digits")]
    assert pictures.main(["gain", "--cells", *map(str, tables)]) == 0
    found = re.findall(r"(\S+): (\d+) calls for DDIM's distance in 1000, (\S+),", capsys.readouterr().out)
    clothes, digits = dict.fromkeys(distance for *_, distance in found)
    enough = {
        distance: {name: calls for name, calls, other in found if other == distance} for distance in (clothes, digits)
    }
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"in {enough[clothes]['S-PNDM']} network calls instead of 1000" in readme
    assert f"after 1000 from the same noise ({float(clothes):.3f} ± " in readme
    later = min(calls_within("results-fashion-modern", 1.05 * float(clothes)).values())
    ddim = enough[clothes]["DDIM"]
    page = "docs/results-fashion-modern.md"
    assert f"DDIM itself is as near after {ddim}, [later methods]({page}) after {later};" in readme
    counted = calls_within("results-modern", 1.05 * float(digits))
    needed = {name: min(int(calls), counted.get(name, 1000)) for name, calls in enough[digits].items()}
    assert needed["S-PNDM"] == needed["F-PNDM"]
    assert f"on the digits S-PNDM and F-PNDM after {needed['S-PNDM']}, DDIM after {needed['DDIM']}." in readme
    same_picture(pages / "gain.svg")


def calls_within(results, distance):
    """Method → the fewest calls in which seed 0 of a page's cells comes so near."""
    with open(ROOT / "docs" / results / "cells.csv", newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["seed"] == "0" and float(line["distance"]) <= distance]
    return {line["label"]: min(int(float(n["nfe"])) for n in lines if n["label"] == line["label"]) for line in lines}


def test_the_picture_of_the_methods_is_made_from_the_code(pages, capsys):
    assert pictures.main(["method"]) == 0
    same_picture(pages / "method.svg")


@pytest.mark.slow
def test_pictures_of_a_training_run(tiny, cli, pages, tmp_path):
    steps = ["--set=Train.steps=4", "--set=Train.log_interval=2"]
    assert cli("--runner", "train", "--config", tiny.config, "--device", "cpu", "--train_path", "run", *steps)[0] == 0
    assert cli(*tiny.flags(tmp_path / "samples", "--total_num", 32))[0] == 0
    shutil.copytree(tmp_path / "samples", tmp_path / "images")
    flags = ["--run", "run", "--images", "images", "--samples", "samples"]
    assert pictures.main(["training", *flags]) == 0
    assert sorted(path.name for path in pages.iterdir()) == ["own-curves.svg", "own-data.png", "own-samples.png"]


def test_a_missing_table_is_one_line(pages, capsys):
    assert pictures.main(["gain", "--cells", "no.csv"]) == 2
    assert capsys.readouterr().err.startswith("pictures.py: ")


def test_crops_are_of_the_size_of_the_experiment_and_all_of_both_photographs(tmp_path, capsys):
    assert crops.main([str(tmp_path / "crops"), "--count", "6"]) == 0
    made = image_files(tmp_path / "crops")
    assert len(made) == 6 == len(set(made.values()))
    images = [np.asarray(Image.open(tmp_path / "crops" / name)) for name in made]
    assert {image.shape for image in images} == {(32, 32, 3)}
    assert all(np.array_equal(image, again) for image, again in zip(images, crops.crops(6), strict=True))
    assert crops.main([str(tmp_path / "crops")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert crops.main([str(tmp_path / "none"), "--count", "0"]) == 2
    assert crops.main([str(tmp_path / "crops" / next(iter(made)) / "below")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]
