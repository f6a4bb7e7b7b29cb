"""The card of a sampling run, and the reference it is measured against."""

import json
import os
from hashlib import sha256

import numpy as np
import pytest
import torch
from helpers import coloured_images, write_images

from pndm.config.errors import InputError
from pndm.runner.measure import features
from pndm.runner.measure.features import make_extractor
from pndm.runner.measure.measurement import Measurement, describe, make_card, name_of
from pndm.runner.measure.reference import reference_of
from pndm.runner.measure.statistics import Moments


def test_card_of_a_sampling_run(tiny, cli, tmp_path):
    """The same distance as of its folder afterwards, to the dataset or to a file of its statistics."""
    assert cli("--runner", "stats", "--out", tmp_path / "digits.npz")[0] == 0
    cards = {}
    for name, more in {"data": [], "file": ["--statistics", tmp_path / "digits.npz"]}.items():
        flags = [*more, "--total_num", 40, "--batch_size", 16]
        assert cli(*tiny.flags(tmp_path / name, *flags))[0] == 0
        cards[name] = json.loads((tmp_path / name / "result.json").read_text())["frechet"]
    files = [tmp_path / "data", tmp_path / "digits.npz"]
    assert cli("--runner", "fid", *files, "--features", "pixels", "--out", tmp_path / "card.json")[0] == 0
    after = json.loads((tmp_path / "card.json").read_text())
    for card in cards.values():
        assert card["value"] == pytest.approx(after["value"], rel=1e-10)
        assert card["error"] == pytest.approx(after["error"], rel=1e-6)
        assert (card["features"], card["hash"], card["images"], card["resize"]) == ("pixels", None, 40, None)
        assert card["weak"] is True and card["reference"]["images"] == 1797
    assert cards["data"]["reference"]["dataset"] == "DIGITS"
    digest = sha256((tmp_path / "digits.npz").read_bytes()).hexdigest()
    assert cards["file"]["reference"]["hash"] == after["reference"]["hash"] == digest


@pytest.mark.slow
def test_sampling_with_inception(tiny, cli, tmp_path, weights):
    """Streamed Inception features of grey images against a file; its record's hash must be the weights'."""
    write_images(tmp_path / "a", coloured_images(0, 6)[..., 0])
    common = ["--features", "inception", "--inception_path", weights]
    assert cli("--runner", "stats", tmp_path / "a", *common, "--out", tmp_path / "a.npz")[0] == 0
    flags = [*common, "--statistics", tmp_path / "a.npz", "--total_num", 4]
    status, out, _ = cli(*tiny.flags(tmp_path / "run", *flags))
    assert status == 0 and "Fréchet distance on inception" in out
    other = torch.load(weights)
    torch.save(other | {"Conv2d_1a_3x3.conv.weight": other["Conv2d_1a_3x3.conv.weight"] * 0}, tmp_path / "other.pth")
    status, _, err = cli(*tiny.flags(tmp_path / "run", *flags, "--inception_path", tmp_path / "other.pth"))
    assert status == 2 and "weights' hash" in err  # of a finished run, too
    moments = Moments.load(tmp_path / "a.npz")
    Moments(moments.mu, moments.sigma, moments.record | {"hash": "0" * 64}).save(tmp_path / "a.npz")
    status, out, err = cli(*tiny.flags(tmp_path / "again", *flags))
    assert (status, out) == (2, "") and f"weights' hash {'0' * 64}, to be compared with" in err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--statistics", "nothing.npz"], "nothing.npz: no such statistics file"),
        (["--statistics", "{tmp}/other.npz"], "other.npz: dimensions 5, to be compared with 64"),
        (["--statistics", "{tmp}/other.npz", "--metrics", "kid"], "other.npz is a statistics file"),
        (["--features", "none", "--metrics", "kid"], "metrics kid: features and at least 2 images are needed"),
        (["--total_num", "4", "--metrics", "prdc"], "more than 5 images are needed on each side; Sample.total_num: 4"),
        (["--set", "Dataset.dataset=FOLDER"], "its files are not in temp/dataset/FOLDER"),
    ],
)
def test_wrong_sampling_is_refused_before_it_begins(tiny, cli, tmp_path, flags, said):
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    status, out, err = cli(*tiny.flags(tmp_path / "run", *flags))
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err
    assert not (tmp_path / "run").exists()


def test_one_image_has_no_distance(tiny, cli, tmp_path):
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--total_num", 1))
    assert status == 0 and "one image has no covariance" in err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["frechet"] is None


def test_metrics_while_sampling(tiny, cli, tmp_path):
    status, out, _ = cli(*tiny.flags(tmp_path / "run", "--total_num", 30, "--metrics", "kid,prdc"))
    assert status == 0 and "kernel distance " in out and "coverage" in out and "KID" not in out
    card = json.loads((tmp_path / "run" / "result.json").read_text())["frechet"]
    assert card["kid"]["size"] == 30 and 0 <= card["prdc"]["precision"] <= 1


class Section:
    """What `reference_of` asks of a `Dataset` section: a name, and all keys."""

    dataset, path, category, channels, image_size, shape, extra = "FOLDER", "images", None, 3, 8, (3, 8, 8), 0

    def model_dump(self, mode):
        return {"dataset": self.dataset, "path": self.path, "extra": self.extra}


def test_a_networks_reference_is_computed_once(tmp_path, monkeypatch):
    """As long as the images and the weights are the same; a damaged file is computed again."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", coloured_images(0, 30))
    calls = []

    def extractor(digest):
        def function(images):
            calls.append(len(images))
            return images.flatten(1)[:, :5].double()

        return features.Extractor("tiny", 5, digest, None, function)

    first = reference_of(Section(), extractor("a"), "cpu")
    assert sum(calls) == 30
    again = reference_of(Section(), extractor("a"), "cpu")
    assert sum(calls) == 30 and again.record == first.record
    assert torch.equal(again.mu, first.mu) and torch.equal(again.sigma, first.sigma)
    reference_of(Section(), extractor("b"), "cpu")
    assert sum(calls) == 60
    write_images(tmp_path / "images", coloured_images(1, 30))
    reference_of(Section(), extractor("a"), "cpu")
    assert sum(calls) == 90
    for file in (tmp_path / "temp" / "stats").iterdir():
        file.write_bytes(b"damaged")
    reference_of(Section(), extractor("a"), "cpu")
    assert sum(calls) == 120


def test_a_reference_is_computed_anew_if_anything_changes_that_it_depends_on(tmp_path, monkeypatch):
    """Of the images every second one is looked at; of their files the names, sizes and times are."""
    monkeypatch.chdir(tmp_path)
    folder, section, described = write_images(tmp_path / "images", coloured_images(0, 30)), Section(), []

    def count(dimension=5, digest="a", resize=None):
        def function(images):
            described.append(len(images))
            return images.flatten(1)[:, :dimension].double()

        before = sum(described)
        reference_of(section, features.Extractor("tiny", dimension, digest, resize, function), "cpu")
        return sum(described) - before

    assert (count(), count()) == (30, 0)
    assert (count(dimension=4), count(digest="b"), count(resize="bilinear")) == (30, 30, 30)
    monkeypatch.setattr(section, "extra", 1)
    assert (count(), count()) == (30, 0)
    (folder / "029.png").rename(folder / "030.png")
    assert (count(), count()) == (30, 0)
    os.utime(folder / "001.png", (1, 1))
    assert (count(), count()) == (30, 0)
    (folder / "030.png").unlink()
    assert (count(), count()) == (29, 0)


def test_sums_made_in_a_thread_are_the_same(tmp_path):
    """As on a GPU."""
    images = torch.randint(0, 256, (700, 1, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = make_extractor("pixels", (1, 2, 3))
    known = extractor(images)
    reference, cards = Moments(known.mean(0) + 0.1, known.T.cov(), {}), []
    for background in (False, True, True):
        measurement = Measurement(extractor, reference, background=background)
        for first in range(0, 700, 100):
            ids = range(first, first + 100)
            measurement.update(ids, images[first : first + 100], known[ids] if background else None)
        cards.append(measurement.card())
    assert cards[0] == cards[1] == cards[2]
    measurement.reset()
    measurement.update([41, 7], images[:2], torch.tensor([[1.0] * 6, [float("nan")] * 6]))
    with pytest.raises(InputError, match=r"^the features of image 7 are not finite$"):
        measurement.card()


@pytest.mark.parametrize(
    ("images", "others", "split", "weak"),
    [
        (10_000, 10_000, None, False),
        (9_999, 10_000, None, True),
        (10_000, 9_999, None, True),
        (10_000, 1_797, "train", False),  # a data set has no more
        (9_999, 1_797, "train", True),
        (10_000, None, None, False),  # not known
        (None, 10_000, None, False),
    ],
)
def test_a_distance_from_few_images_is_weak(images, others, split, weak):
    mean, covariance = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    ours, theirs = Moments(mean, covariance, {"images": images}), Moments(mean, covariance, {"images": others})
    theirs.record.update({"split": split} if split else {})
    assert make_card(ours, theirs)["weak"] is weak


def test_what_is_called_fid():

    card = {
        "value": 3.951,
        "error": 0.031,
        "features": "inception",
        "hash": "6726825d0",
        "images": 50_000,
        "weak": False,
    }
    card["reference"] = {"file": "fid_cifar10_train.npz", "images": None}
    known = (
        "FID: 3.9510 ± 0.0310, from 50,000 images\n    reference: fid_cifar10_train.npz, an unknown number of images"
    )
    assert describe(card) == known
    assert "FID" not in describe(card | {"features": "pixels", "hash": None, "error": None})


def test_a_distance_is_called_what_it_is():
    names = [("inception", features.FID_HASH + "0" * 56), ("inception", "0" * 64), ("fashion", "0" * 64), (None, None)]
    assert [name_of({"features": kind, "hash": digest}) for kind, digest in names] == [
        "FID",
        "Fréchet distance on inception (not pytorch-fid's weights)",
        "Fréchet distance on Fashion-MNIST classifier features",
        "Fréchet distance on unnamed features",
    ]
