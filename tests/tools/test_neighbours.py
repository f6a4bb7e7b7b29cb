"""The nearest training images of samples."""

import numpy as np
import pytest
from PIL import Image

from pndm.config.load import load
from pndm.dataset import open_dataset, to_picture
from pndm.tools import neighbours


@pytest.fixture
def digits():
    return open_dataset(load("digits.yml").Dataset)


def test_a_copy_is_found_at_no_distance_and_a_changed_pixel_at_its_own(digits, tmp_path, capsys):
    image = np.array(to_picture(digits[1000]))
    Image.fromarray(image).save(tmp_path / "000000.png")
    image[3, 4] ^= 64
    Image.fromarray(image).save(tmp_path / "000001.png")
    assert neighbours.main([str(tmp_path), "--to", str(tmp_path / "picture.png")]) == 0
    changed = 64 / 255 / 8
    assert "2 samples, pixels: median 0.0000, least 0.0000" in capsys.readouterr().out  # the lower of two
    assert neighbours.main([str(tmp_path), "--images", "2"]) == 0
    views = neighbours.views_of(load("digits.yml"), (1, 8, 8))
    images = neighbours.torch.stack([neighbours.read_image(tmp_path / f"00000{i}.png") for i in range(2)])
    distance, place = neighbours.nearest(images, digits, views)["pixels"]
    assert place.tolist() == [1000, 1000]
    assert distance.tolist() == pytest.approx([0, changed], abs=1e-6)
    width, height = Image.open(tmp_path / "picture.png").size
    assert height == pytest.approx(width, rel=0.2)  # two tiles beside each other, two rows


def test_images_of_another_size_are_one_line(tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "000000.png")
    Image.new("L", (28, 28)).save(tmp_path / "000001.png")
    assert neighbours.main([str(tmp_path)]) == 2
    assert "000001.png is (1, 28, 28), DIGITS has images of (1, 8, 8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["none"], "none has no images"),
        ([".", "--config", "x"], "no file x"),
        ([".", "--images", "0"], "--images is 0, it must be at least 1"),
        ([".", "--to", "nowhere/x.png"], "--to nowhere/x.png must be a file in a folder that exists"),
    ],
)
def test_what_is_missing_is_one_line(tmp_path, monkeypatch, capsys, flags, line):
    monkeypatch.chdir(tmp_path)
    assert neighbours.main(flags) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"neighbours.py: {line}")
    assert err.count("\n") == 1
