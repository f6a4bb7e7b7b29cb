"""The extractors: pytorch-fid's Inception and its weights, one's own network."""

from hashlib import sha256

import pytest
import torch
from helpers import coloured_images, write_images

from pndm.config.errors import InputError
from pndm.dataset.readers import DEBIAN
from pndm.runner.measure import features, fid
from pndm.runner.measure.distance import frechet_distance
from pndm.runner.measure.reference import open_statistics


def test_inception_takes_grey_images_and_the_hubs_cache(weights, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(weights.parent.parent.parent))
    extractor = features.make_extractor("inception", (1, 8, 8))
    grey = torch.from_numpy(coloured_images(0, 2)[..., :1].transpose(0, 3, 1, 2).copy())
    found = extractor(grey)
    assert found.shape == (2, extractor.dimension) and found.dtype == torch.float64
    assert extractor.dimension == features.dimension_of("inception", (1, 8, 8))
    assert torch.equal(found, extractor(grey.repeat(1, 3, 1, 1)))
    assert found.std() > 0.01


def test_inception_without_weights(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    a = write_images(tmp_path / "a", coloured_images(0, 2))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    status, out, err = cli("--runner", "fid", a, a)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert "pt_inception-2015-12-05 could not be downloaded (github.com: offline); put it at temp/models/pt" in err
    assert "or set inception_path to where it is" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no file"),
        (b"no weights", "not readable as weights"),
        ({"a": torch.zeros(1)}, "not the weights of pytorch-fid's Inception"),
    ],
)
def test_wrong_weights(tmp_path, cli, content, said):
    pytest.importorskip("pytorch_fid")
    a, path = write_images(tmp_path / "a", coloured_images(0, 2)), tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    status, out, err = cli("--runner", "fid", a, a, "--inception_path", path)
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err and str(path) in err


def test_another_extractor_is_a_line(tmp_path, cli, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"w")

    def load(path):
        return torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten()), file

    line = features.network("tiny", 12, load, 16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    monkeypatch.setitem(features.EXTRACTORS, "tiny", line)
    assert features.dimension_of("tiny", (3, 16, 16)) == 12

    folders = [write_images(tmp_path / name, coloured_images(i, 40)) for i, name in enumerate("ab")]
    card = fid.compare(folders, "tiny", "cpu")
    assert (
        card["features"] == "tiny" and card["hash"] == sha256(b"w").hexdigest() and card["resize"] == "bicubic to 16×16"
    )
    assert card["value"] > 0


def test_unknown_extractors_are_refused_with_the_names_of_those_there_are():
    with pytest.raises(InputError, match="features 'x' is not one of pixels, fashion, inception, none") as caught:
        features.make_extractor("x", (1, 8, 8))
    assert caught.value.keys == ("Sample.features",)


def test_the_classifier_of_fashion_mnist_and_its_statistics():
    """The bundled statistics are of the bundled weights, and real clothes lie near them, noise far away."""
    extractor = features.make_extractor("fashion", (1, 28, 28))
    reference = open_statistics("model/fashion_statistics.npz")
    assert (reference.record["hash"], reference.record["images"]) == (extractor.hash, 60_000)
    assert reference.mu.shape == (128,) and extractor.dimension == 128
    assert features.dimension_of("fashion", (1, 28, 28)) == 128
    noise = torch.randint(0, 256, (300, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = extractor(noise)
    far = frechet_distance(found.mean(0), found.T.cov(), reference.mu, reference.sigma)
    assert far > 30
    with pytest.raises(InputError, match=r"for grey images of 28×28, not of \(3, 28, 28\)"):
        features.make_extractor("fashion", (3, 28, 28))


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="no Fashion-MNIST: Debian's package dataset-fashion-mnist is not there")
def test_clothes_that_the_classifier_has_not_seen_are_near(cli, tmp_path):
    flags = ["--runner", "stats", "--config", "fashion.yml", "--set", "Dataset.split=test", "--out", tmp_path / "t.npz"]
    assert cli(*flags)[0] == 0
    _, out, _ = cli("--runner", "fid", tmp_path / "t.npz", "model/fashion_statistics.npz")
    assert out.startswith("Fréchet distance on Fashion-MNIST classifier features: 0.0077, from 10,000 images")
