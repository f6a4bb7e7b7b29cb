"""The runners fid and stats, the extractors, and the card of a sampling run."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from unittest import mock

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from pndm.runner.measure import features
from pndm.runner.measure.features import EXTRACTORS
from pndm.runner.measure.fid import Measurement
from pndm.runner.measure.statistics import Moments, kid, prdc

# pytorch-fid asks sqrtm for what SciPy 1.18 no longer gives.
PYTORCH_FID = """
import inspect, runpy, warnings, scipy.linalg as linalg
sqrtm = linalg.sqrtm
if "disp" not in inspect.signature(sqrtm).parameters:
    linalg.sqrtm = lambda a, disp=True: sqrtm(a) if disp else (sqrtm(a), 0.0)
warnings.simplefilter("ignore")
runpy.run_module("pytorch_fid", run_name="__main__")
"""


def write(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def colour(seed, n, size=8, contrast=1.0):
    """Smooth uint8 images (n, size, size, 3) with noise."""
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.normal(128, 40 * contrast, (n, 4, 4, 3)), np.ones((1, size // 4, size // 4, 1)))
    return np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def direct(a, b):
    """The distance of the grey levels of uint8 images (n, …), by np.cov and SciPy's matrix square root."""
    a, b = ((x.mean(0), np.cov(x, rowvar=False)) for x in (v.reshape(len(v), -1) / 255 for v in (a, b)))
    root = scipy.linalg.sqrtm(a[1] @ b[1])
    return ((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * np.trace(root).real


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Random weights of pytorch-fid's Inception, that keep the scale of what passes through, as in a hub's cache."""
    package = pytest.importorskip("pytorch_fid.inception")
    torch.manual_seed(0)
    loading = (
        mock.patch.object(torch.nn.Module, "load_state_dict"),
        mock.patch.object(package, "load_state_dict_from_url"),
    )
    with loading[0], loading[1]:
        network = package.fid_inception_v3()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    file = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints" / package.FID_WEIGHTS_URL.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    return file


def test_against_the_command_line_of_pytorch_fid(weights, tmp_path, cli):
    """The same folders and weights: 24 images a side, so that both covariances are as singular as they come."""
    a, b = (write(tmp_path / name, colour(i, 24, 32, 1 + i / 2)) for i, name in enumerate("ab"))
    command = [sys.executable, "-c", PYTORCH_FID, str(a), str(b), "--device", "cpu", "--num-workers", "0"]
    home = os.environ | {"TORCH_HOME": str(weights.parent.parent.parent)}
    out = subprocess.run(command, env=home, capture_output=True, text=True, check=True).stdout
    theirs = float(out.split("FID:")[1])
    status, out, err = cli("--runner", "fid", a, b, "--inception_path", weights, "--out", tmp_path / "card.json")
    assert (status, err) == (0, "")
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["value"] == pytest.approx(theirs, rel=1e-6)
    assert card["error"] > 0 and card["weak"] and card["resize"] == "bilinear to 299×299"
    assert card["hash"] == sha256(weights.read_bytes()).hexdigest()
    # Not pytorch-fid's own weights, so not an FID.
    assert out.startswith("Fréchet distance on inception (not pytorch-fid's weights): ") and "FID:" not in out


def test_inception_takes_grey_images_and_the_hubs_cache(weights, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(weights.parent.parent.parent))
    extractor = features.EXTRACTORS["inception"]((1, 8, 8), "cpu", None)
    grey = torch.from_numpy(colour(0, 2)[..., :1].transpose(0, 3, 1, 2).copy())
    found = extractor(grey)
    assert found.shape == (2, extractor.dimension) and found.dtype == torch.float64
    assert torch.equal(found, extractor(grey.repeat(1, 3, 1, 1)))
    assert found.std() > 0.01


def test_inception_without_weights(tmp_path, monkeypatch, cli):
    a = write(tmp_path / "a", colour(0, 2))
    missing = mock.Mock(side_effect=OSError("offline"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", missing)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    status, out, err = cli("--runner", "fid", a, a)
    assert (status, out) == (2, "") and err.count("\n") == 1
    where = tmp_path / "home" / "hub" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    assert (
        "could not be downloaded (offline)" in err and f"put that file at {where}" in err and "--inception_path" in err
    )
    missing.assert_called_once()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "--inception_path: no file"),
        (b"no weights", "not readable as weights"),
        ({"a": torch.zeros(1)}, "not the weights of pytorch-fid's Inception"),
    ],
)
def test_wrong_weights(tmp_path, cli, content, said):
    pytest.importorskip("pytorch_fid")
    a, path = write(tmp_path / "a", colour(0, 2)), tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    status, out, err = cli("--runner", "fid", a, a, "--inception_path", path)
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err and str(path) in err


def test_pixels_against_np_cov(tmp_path, cli):
    images = colour(0, 300), colour(1, 250, contrast=0.8)
    value = direct(*images)
    folder = write(tmp_path / "a", images[0])
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
    images = colour(0, 60)
    folder = write(tmp_path / "a", images)
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


def test_another_extractor_is_a_line(tmp_path, cli, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"w")

    def load(path):
        return torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten()), file

    line = features.network("tiny", 12, load, 16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    monkeypatch.setitem(features.EXTRACTORS, "tiny", line)
    from pndm.runner.measure import fid

    folders = [write(tmp_path / name, colour(i, 40)) for i, name in enumerate("ab")]
    card = fid.compare(folders, "tiny", "cpu")
    assert (
        card["features"] == "tiny" and card["hash"] == sha256(b"w").hexdigest() and card["resize"] == "bicubic to 16×16"
    )
    assert card["value"] > 0


def test_what_is_called_fid():
    from pndm.runner.measure.fid import describe

    card = {
        "value": 3.951,
        "error": 0.031,
        "features": "inception",
        "hash": "6726825d0",
        "images": 50_000,
        "weak": False,
    }
    card["reference"] = {"file": "fid_cifar10_train.npz", "images": None}
    assert describe(card) == "FID: 3.9510 ± 0.0310, 50,000 images to the unknown images of fid_cifar10_train.npz"
    assert "FID" not in describe(card | {"features": "pixels", "hash": None, "error": None})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["{a}"], "needs two paths"),
        (["{a}", "{a}", "{a}"], "3 are given"),
        (["{a}", "{tmp}/nothing"], "nothing: no such file or folder"),
        (["{a}", "{tmp}"], "no image files in this folder"),
        (["{a}", "{tmp}/text.txt"], "text.txt: not a folder of images, nor"),
        (["{a}", "{tmp}/text.npz"], "not readable as NumPy's arrays"),
        (["{a}", "{one}"], "one: 1 image; a covariance needs at least 2"),
        (["{a}", "{large}"], "a of (3, 8, 8) and"),
        (["{a}", "{tmp}/mixed"], "image 1 is (3, 16, 16), image 0 (3, 8, 8)"),
        (["{large}", "{a}", "--set", "Sample.features=none"], "compared at one size only"),
        (["{a}", "{tmp}/other.npz"], "other.npz: dimensions 5, to be compared with 192"),
        (["{a}", "{tmp}/named.npz"], "named.npz: features inception, to be compared with pixels"),
        (["{tmp}/other.npz", "{tmp}/named.npz"], "other.npz: dimensions 5, to be compared with 192"),
        (["{a}", "{tmp}/nan.npz"], "nan.npz: mu and sigma are not finite"),
        (["{a}", "{tmp}/huge.npy"], "at most 4096 values, not 12288"),
        (["{a}", "{a}", "--out", "card.txt"], "--out: card.txt is not the name of a .json file"),
        (["{a}", "{a}", "--metrics", "isc"], "input should be 'kid' or 'prdc'"),
        (["{a}", "{tmp}/named.npz", "--features", "inception", "--metrics", "kid"], "statistics file"),
        (["{a}", "{few}", "--metrics", "prdc"], "needs more than 5 images on each side"),
        (["{a}", "{a}", "--statistics", "x"], "--statistics does not go with --runner fid, only with sample"),
    ],
)
def test_wrong_comparisons(tmp_path, cli, weights, flags, said):
    places = {"tmp": tmp_path, "a": write(tmp_path / "a", colour(0, 9))}
    places["one"], places["few"] = write(tmp_path / "one", colour(0, 1)), write(tmp_path / "few", colour(0, 3))
    places["large"] = write(tmp_path / "large", colour(0, 4, 16))
    write(tmp_path / "mixed", [*colour(0, 1), *colour(0, 1, 16)])
    for name in ("text.txt", "text.npz"):
        (tmp_path / name).write_text("text")
    record = np.array(json.dumps({"features": "inception", "hash": "0"}))
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    np.savez(tmp_path / "named.npz", mu=np.zeros(192), sigma=np.eye(192), record=record)
    np.savez(tmp_path / "nan.npz", mu=np.full(192, np.nan), sigma=np.eye(192))
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
        (["--out", "x.json"], "--out: x.json is not the name of a .npz file"),
        (["--features", "none"], "--features: none leaves --runner stats nothing to do"),
        (["--metrics", "kid"], "--metrics does not go with --runner stats"),
    ],
)
def test_wrong_stats(cli, flags, said):
    status, out, err = cli("--runner", "stats", *flags)
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err


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


def test_sampling_with_inception(tiny, cli, tmp_path, weights):
    """Streamed Inception features of grey images against a file; its record's hash must be the weights'."""
    write(tmp_path / "a", colour(0, 6)[..., 0])
    common = ["--features", "inception", "--inception_path", weights]
    assert cli("--runner", "stats", tmp_path / "a", *common, "--out", tmp_path / "a.npz")[0] == 0
    flags = [*common, "--statistics", tmp_path / "a.npz", "--total_num", 4]
    status, out, _ = cli(*tiny.flags(tmp_path / "run", *flags))
    assert status == 0 and "Fréchet distance on inception" in out
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
        (["--features", "none", "--metrics", "kid"], "--metrics: needs --features"),
        (["--total_num", "4", "--metrics", "prdc"], "more than 5 images on each side, --total_num has 4"),
        (["--set", "Dataset.dataset=FOLDER"], "its files are not in temp/dataset/FOLDER"),
    ],
)
def test_wrong_sampling_is_refused_before_it_begins(tiny, cli, tmp_path, flags, said):
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    status, out, err = cli(*tiny.flags(tmp_path / "run", *flags))
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_written_is_refused_first_and_nothing_is_made(tiny, cli, tmp_path):
    (tmp_path / "file").touch()
    status, _, err = cli("--runner", "stats", "--config", tiny.config, "--out", tmp_path / "file/below/s.npz")
    assert status == 2 and "cannot be written" in err and err.count("\n") == 1
    status, _, err = cli("--runner", "fid", tmp_path / "no", tmp_path / "none", "--out", tmp_path / "new/card.json")
    assert status == 2 and "no such file or folder" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_one_image_has_no_distance(tiny, cli, tmp_path):
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--total_num", 1))
    assert status == 0 and "one image has no covariance" in err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["frechet"] is None


def test_metrics_while_sampling(tiny, cli, tmp_path):
    status, out, _ = cli(*tiny.flags(tmp_path / "run", "--total_num", 30, "--metrics", "kid,prdc"))
    assert status == 0 and "; kernel distance " in out and "coverage" in out and "KID" not in out
    card = json.loads((tmp_path / "run" / "result.json").read_text())["frechet"]
    assert card["kid"]["size"] == 30 and 0 <= card["prdc"]["precision"] <= 1


def test_kid_is_the_unbiased_mmd():
    """Of all images, a subset is everything: against the double sum of its definition."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 5)), rng.standard_normal((12, 5)) + 0.5

    def kernel(a, b):
        return (a @ b / 5 + 1) ** 3

    within = sum(kernel(v[i], v[j]) for v in (x, y) for i in range(12) for j in range(12) if i != j) / (12 * 11)
    between = sum(kernel(a, b) for a in x for b in y) / 144
    found = kid(torch.from_numpy(x), torch.from_numpy(y))
    assert found["value"] == pytest.approx(within - 2 * between, rel=1e-12)
    assert (found["deviation"], found["subsets"]) == (None, 1)
    with pytest.raises(ValueError, match="at least 2 vectors"):
        kid(torch.zeros(1, 3), torch.zeros(5, 3))


def test_kid_does_not_depend_on_the_number_of_images():
    draws = torch.randn(2, 4000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = kid(draws[0], draws[1], subsets=20)
    assert abs(found["value"]) < 0.02 and found["deviation"] > 1e-3
    assert kid(draws[0] + 0.5, draws[1], subsets=20)["value"] > 0.3


def test_metrics_do_not_depend_on_the_order_in_which_images_come():
    images = torch.randint(0, 256, (1200, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = EXTRACTORS["pixels"]((1, 4, 4), "cpu", None)
    features = extractor(images)
    reference = Moments(features.mean(0), features.T.cov(), {})
    cards = []
    for order in (range(0, 1200, 300), range(900, -1, -300)):
        measurement = Measurement(extractor, reference, None, ["kid"], [features.float() + 0.1])
        for first in order:
            measurement.update(range(first, first + 300), images[first : first + 300])
        cards.append(measurement.card()["kid"])
    assert cards[0] == cards[1] and cards[0]["size"] == 1000


def test_prdc_against_its_definition():
    rng = np.random.default_rng(0)
    x, y, k = rng.standard_normal((150, 3)), rng.standard_normal((170, 3)) * 1.5, 5

    def distances(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))

    around_x, around_y = (np.sort(distances(v, v), 1)[:, k] for v in (x, y))
    inside, recalled = distances(x, y) < around_y, distances(y, x) < around_x
    assert prdc(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(
        {
            "precision": inside.any(1).mean(),
            "recall": recalled.any(1).mean(),
            "density": inside.sum() / (k * 150),
            "coverage": (distances(y, x).min(1) < around_y).mean(),
            "nearest": k,
        }
    )
