"""The runners fid and stats."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import coloured_images, write_images
from PIL import Image

from pndm.runner.measure import fid
from pndm.runner.measure.statistics import Moments


def direct(a, b):
    """The distance of the grey levels of uint8 images (n, …), by np.cov and SciPy's matrix square root."""
    a, b = ((x.mean(0), np.cov(x, rowvar=False)) for x in (v.reshape(len(v), -1) / 255 for v in (a, b)))
    root = scipy.linalg.sqrtm(a[1] @ b[1])
    return ((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * np.trace(root).real


def test_against_the_command_line_of_pytorch_fid(weights, tmp_path, cli):
    """The same folder and weights give the same statistics.

    pytorch-fid's distance of 2,048 dimensions takes a minute; tests/runner/measure/test_distance.py holds ours against
    it on fewer.
    """
    folder, theirs, ours = (
        write_images(tmp_path / "a", coloured_images(0, 24, 32)),
        tmp_path / "t.npz",
        tmp_path / "o.npz",
    )
    home = os.environ | {"TORCH_HOME": str(weights.parent.parent.parent)}
    command = [sys.executable, "-m", "pytorch_fid", "--save-stats", "--device", "cpu", "--num-workers", "0"]
    subprocess.run([*command, str(folder), str(theirs)], env=home, capture_output=True, check=True)
    assert cli("--runner", "stats", folder, "--inception_path", weights, "--out", ours)[0] == 0
    theirs, ours = Moments.load(theirs), Moments.load(ours)
    for name in ("mu", "sigma"):
        a, b = getattr(theirs, name), getattr(ours, name)
        assert (a - b).abs().max() < 1e-5 * a.abs().max()
    assert ours.record["hash"] == sha256(weights.read_bytes()).hexdigest() and theirs.record.get("hash") is None


def test_images_of_several_sizes_are_named(tmp_path, cli):
    folder = write_images(tmp_path / "a", coloured_images(0, 5))
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "z.png")
    status, _, err = cli("--runner", "stats", folder, "--features", "pixels", "--out", tmp_path / "a.npz")
    assert (status, err.count("\n")) == (2, 1)
    assert "z.png is (3, 8, 9)" in err and "000.png (3, 8, 8); all must be of one shape" in err


def test_a_damaged_archive_is_one_line(tmp_path, cli):
    folder = write_images(tmp_path / "a", coloured_images(0, 5))
    np.savez_compressed(tmp_path / "b.npz", coloured_images(1, 5))
    content = bytearray((tmp_path / "b.npz").read_bytes())
    content[len(content) // 2] ^= 0x55
    for damaged in (content, content[:-30]):
        (tmp_path / "b.npz").write_bytes(damaged)
        status, _, err = cli("--runner", "fid", folder, tmp_path / "b.npz", "--features", "pixels")
        assert (status, err.count("\n")) == (2, 1) and "b.npz: not readable as NumPy's arrays" in err


def test_pixels_against_np_cov(tmp_path, cli):
    images = coloured_images(0, 300), coloured_images(1, 250, contrast=0.8)
    value = direct(*images)
    folder = write_images(tmp_path / "a", images[0])
    np.save(tmp_path / "b.npy", images[1])
    np.savez(tmp_path / "b.npz", images[1])
    # The features' order is (C, H, W) here; pytorch-fid's file of the same images is made in it.
    other = images[1].transpose(0, 3, 1, 2).reshape(250, -1) / 255
    np.savez(tmp_path / "fid_b.npz", mu=other.mean(0), sigma=np.cov(other, rowvar=False))
    for name in ("b.npy", "b.npz", "fid_b.npz"):
        out = tmp_path / "card.json"
        status, said, err = cli("--runner", "fid", folder, tmp_path / name, "--features", "pixels", "--out", out)
        assert (status, err) == (0, "") and said.startswith("Fréchet distance on pixels: ")
        card = json.loads(out.read_text())
        assert card["value"] == pytest.approx(value, rel=1e-10) and card["error"] > 0
        assert card["images"] == 300 and card["features"] == "pixels" and card["weak"] is True
    file = tmp_path / "fid_b.npz"
    assert card["reference"] == {"file": str(file), "hash": sha256(file.read_bytes()).hexdigest(), "images": None}


def test_stats_of_a_folder_and_of_a_dataset(tmp_path, cli, monkeypatch):
    images = coloured_images(0, 60)
    folder = write_images(tmp_path / "a", images)
    assert cli("--runner", "stats", folder, "--features", "pixels", "--out", tmp_path / "a.npz")[0] == 0
    moments = Moments.load(tmp_path / "a.npz")
    right = images.transpose(0, 3, 1, 2).reshape(60, -1) / 255
    assert np.allclose(moments.mu, right.mean(0), rtol=1e-13)
    assert np.allclose(moments.sigma, np.cov(right, rowvar=False), rtol=1e-10, atol=1e-15)
    wanted = {"dataset": "FOLDER", "split": None, "crop": None, "resize": None, "images": 60, "features": "pixels"}
    assert moments.record == wanted | {"path": str(folder), "hash": None}
    monkeypatch.chdir(tmp_path)
    status, out, _ = cli("--runner", "stats", "--config", "digits.yml")
    assert status == 0 and "temp/stats/digits.npz: 64 pixels features of 1,797 images" in out
    assert Moments.load("temp/stats/digits.npz").record["dataset"] == "DIGITS"
    status, out, _ = cli("--runner", "fid", "temp/stats/digits.npz", "temp/stats/digits.npz", "--out", "c.json")
    card = json.loads((tmp_path / "c.json").read_text())
    assert status == 0 and 0 <= card["value"] < 1e-12 and card["error"] is None and card["features"] == "pixels"


def test_features_of_a_run_are_those_it_was_measured_with(tiny, cli, tmp_path):
    """The digits' run says pixels, so two of its folders are compared on pixels; as a statistics file says."""
    for seed in (0, 1):
        flags = tiny.flags(tmp_path / str(seed), "--total_num", 12, "--seed", seed, "--sample_speed", 2)
        assert cli(*flags)[0] == 0
    status, out, _ = cli("--runner", "fid", tmp_path / "0", tmp_path / "1")
    assert status == 0 and out.startswith("Fréchet distance on pixels: ")
    (tmp_path / "1" / "result.json").rename(tmp_path / "aside.json")
    status, _, err = cli("--runner", "fid", tmp_path / "0", tmp_path / "1")
    assert status == 0 and f"{tmp_path / '1'}: an unfinished sampling run, of 12 images so far\n" in err
    assert cli("--runner", "stats", "--config", tiny.config, "--out", tmp_path / "s.npz")[0] == 0
    shutil.rmtree(tmp_path / "1")
    for damaged in ('{"frechet": {"features": ["x"]}}', "[]", "{"):
        (tmp_path / "0" / "result.json").write_text(damaged)
        status, out, _ = cli("--runner", "fid", tmp_path / "0", tmp_path / "s.npz")
        assert status == 0 and out.startswith("Fréchet distance on pixels: ")


def test_a_statistics_file_says_the_features_before_a_run_does(tiny, cli, tmp_path):
    """The run was measured on pixels; the file is of a classifier's features, which its 8×8 images cannot have."""
    assert cli(*tiny.flags(tmp_path / "run", "--total_num", 4, "--sample_speed", 2))[0] == 0
    Moments(torch.zeros(4).double(), torch.eye(4).double(), {"features": "fashion"}).save(tmp_path / "other.npz")
    status, _, err = cli("--runner", "fid", tmp_path / "run", tmp_path / "other.npz")
    assert status == 2 and "features fashion: for grey images of 28×28, not of (1, 8, 8)" in err


def test_an_experiment_says_the_features_if_it_names_any(tiny, cli, tmp_path, monkeypatch):
    write_images(tmp_path / "images", coloured_images(0, 8)[..., 0])
    asked = []
    monkeypatch.setattr(fid, "compare", lambda paths, features, *rest: asked.append(features))
    for config in (tiny.config, "ddim_cifar10.yml"):
        assert cli("--runner", "fid", tmp_path / "images", tmp_path / "images", "--config", config)[0] == 0
    assert asked == ["pixels", None]  # None: as the images' records say, else Inception's


def test_features_can_be_set_by_their_key(tmp_path, cli):
    a, b = (write_images(tmp_path / name, coloured_images(seed, 9)) for name, seed in (("a", 0), ("b", 9)))
    for flags in (["--features", "pixels"], ["--set", "Sample.features=pixels"]):
        status, out, err = cli("--runner", "fid", a, b, *flags)
        assert status == 0, err
        assert out.startswith("Fréchet distance on pixels")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["{a}"], "two paths are needed"),
        (["{a}", "{a}", "{a}"], "3 are given"),
        (["{a}", "{tmp}/nothing"], "nothing: no such file or folder"),
        (["{a}", "{tmp}"], "no image files in this folder"),
        (["{a}", "{tmp}/text.txt"], "text.txt: not a folder of images, nor"),
        (["{a}", "{tmp}/text.npz"], "not readable as NumPy's arrays"),
        (["{a}", "{one}"], "one: 1 image; a covariance needs at least 2"),
        (["{a}", "{large}"], "a of (3, 8, 8) and"),
        (["{a}", "{tmp}/mixed"], "mixed/001.png is (3, 16, 16), "),
        (["{large}", "{a}", "--set", "Sample.features=none"], "compared at one size only"),
        (["{a}", "{tmp}/other.npz"], "other.npz: dimensions 5, to be compared with 192"),
        (["{a}", "{tmp}/named.npz"], "named.npz: features inception, to be compared with pixels"),
        (["{tmp}/named.npz", "{tmp}/named.npz"], "named.npz: features inception, to be compared with pixels"),
        (
            ["{tmp}/other.npz", "{tmp}/named.npz", "--features", "inception"],
            "other.npz: dimensions 5, to be compared with 192",
        ),
        (["{a}", "{tmp}/nan.npz"], "nan.npz: mu and sigma are not finite"),
        (["{a}", "{tmp}/indefinite.npz"], "indefinite.npz: sigma has negative eigenvalues"),
        (["{a}", "{tmp}/empty.npy"], "empty.npy: holds uint8 (0, 8, 8, 3)"),
        (["{a}", "{tmp}/flat.npy"], "flat.npy: its images are (3, 0, 8), without values"),
        (["{a}", "{tmp}/claims.npz"], "claims.npz: not readable as NumPy's arrays"),
        (["{a}", "{tmp}/huge.npy"], "at most 4096 values, not 12288"),
        (["{a}", "{a}", "--out", "card.txt"], "card.txt is not the name of a .json file"),
        (["{a}", "{a}", "--metrics", "isc"], "input should be 'kid' or 'prdc'"),
        (["{a}", "{tmp}/named.npz", "--features", "inception", "--metrics", "kid"], "statistics file"),
        (["{a}", "{few}", "--metrics", "prdc"], "more than 5 images are needed on each side"),
        (["{a}", "{a}", "--statistics", "x"], "--statistics does not go with --runner fid, only with sample"),
    ],
)
def test_wrong_comparisons(tmp_path, cli, weights, flags, said):
    places = {"tmp": tmp_path, "a": write_images(tmp_path / "a", coloured_images(0, 9))}
    places["one"], places["few"] = (
        write_images(tmp_path / "one", coloured_images(0, 1)),
        write_images(tmp_path / "few", coloured_images(0, 3)),
    )
    places["large"] = write_images(tmp_path / "large", coloured_images(0, 4, 16))
    write_images(tmp_path / "mixed", [*coloured_images(0, 1), *coloured_images(0, 1, 16)])
    for name in ("text.txt", "text.npz"):
        (tmp_path / name).write_text("text")
    record = np.array(json.dumps({"features": "inception", "hash": "0"}))
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    np.savez(tmp_path / "named.npz", mu=np.zeros(192), sigma=np.eye(192), record=record)
    np.savez(tmp_path / "nan.npz", mu=np.full(192, np.nan), sigma=np.eye(192))
    sigma = np.eye(192) + 3 * np.eye(192, k=1) + 3 * np.eye(192, k=-1)
    np.savez(tmp_path / "indefinite.npz", mu=np.zeros(192), sigma=sigma)
    np.save(tmp_path / "empty.npy", np.zeros((0, 8, 8, 3), np.uint8))
    np.save(tmp_path / "flat.npy", np.zeros((3, 0, 8, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive, archive.open("arr_0.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**13, 1, 1, 3)})
    np.save(tmp_path / "huge.npy", np.zeros((3, 64, 64, 3), np.uint8))
    if "huge" in flags[-1]:
        flags = [flags[1], flags[1]]
    if "--features" not in flags:
        flags = [*flags, "--features", "pixels"]
    else:
        flags = [*flags, "--inception_path", str(weights)]
    before = sorted(tmp_path.rglob("*"))
    status, out, err = cli("--runner", "fid", *(flag.format(**places) for flag in flags))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["nothing"], "nothing: no such folder"),
        (["a", "b"], "2 paths are given; it takes one folder"),
        (["--out", "x.json"], "x.json is not the name of a .npz file"),
        (["--features", "none"], "--features: none leaves --runner stats nothing to do"),
        (["--metrics", "kid"], "--metrics does not go with --runner stats"),
    ],
)
def test_wrong_stats(cli, flags, said):
    status, out, err = cli("--runner", "stats", *flags)
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err


def test_what_cannot_be_written_is_refused_first_and_nothing_is_made(tiny, cli, tmp_path):
    (tmp_path / "file").touch()
    status, _, err = cli("--runner", "stats", "--config", tiny.config, "--out", tmp_path / "file/below/s.npz")
    assert status == 2 and "cannot be written" in err and err.count("\n") == 1
    status, _, err = cli("--runner", "fid", tmp_path / "no", tmp_path / "none", "--out", tmp_path / "new/card.json")
    assert status == 2 and "no such file or folder" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
