"""Streamed statistics against whole ones, and their files."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers import ROOT, places, statistics_of

from pndm.config.errors import InputError
from pndm.runner.measure.statistics import ROWS, Moments, Statistics


@pytest.mark.parametrize("batch", [1, 7, 100, 5000])
def test_streamed_moments(batch):
    features = np.random.default_rng(0).normal(100, 1, (5000 if batch > 1 else 300, 5))
    mean, covariance = statistics_of(features, batch=batch).moments()
    assert np.allclose(mean, features.mean(0), rtol=1e-13)
    assert np.allclose(covariance, np.cov(features, rowvar=False), rtol=1e-11, atol=1e-13)


def test_sums_do_not_depend_on_the_order_in_which_images_come():
    """To the last digit, across the blocks of 20 × 256 images."""
    features = torch.randn(12_000, 6, generator=torch.Generator().manual_seed(0)).double() + 3
    whole = statistics_of(features, batch=500)
    other = Statistics(6)
    for first in torch.randperm(120, generator=torch.Generator().manual_seed(1)).tolist():
        other.update(features[100 * first : 100 * first + 100], range(100 * first, 100 * first + 100))
    assert all(torch.equal(a, b) for a, b in zip(whole.moments(), other.moments(), strict=True))
    for a, b in zip(whole.leave_one_out(), other.leave_one_out(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])


GATHER = """
import sys, torch
from pndm.runner.measure.statistics import Statistics
from pndm.runner.processes import end, processes
features = torch.load(sys.argv[1] + "/features.pt")
with processes(torch.device("cpu")) as team:
    in_turn = [batch % 3 for batch in range(120)]
    unequal = [0] * 110 + [2] * 10  # the first sees whole blocks alone, the second nothing
    for name, shares in {"in turn": in_turn, "unequal": unequal}.items():
        total = Statistics(6)
        for batch, rank in enumerate(shares):
            if rank == team.rank:
                total.update(features[100 * batch : 100 * batch + 100], range(100 * batch, 100 * batch + 100))
        total.gather(team)
        torch.save((total.moments(), list(total.leave_one_out())), f"{sys.argv[1]}/{name} {team.rank}.pt")
end(0)
"""


def test_sums_do_not_depend_on_the_number_of_processes(tmp_path):
    """To the last digit, too."""
    features = torch.randn(12_000, 6, generator=torch.Generator().manual_seed(0)).double() + 3
    features[-1] += 1e-12  # only the rank that sees this one has values that float32 does not hold
    torch.save(features, tmp_path / "features.pt")
    runs = [subprocess.Popen([sys.executable, "-c", GATHER, tmp_path], env=place, cwd=ROOT) for place in places(3)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0, 0]
    whole = statistics_of(features, batch=500)
    for share in ("in turn", "unequal"):
        left_out = {}
        for rank in range(3):
            moments, its_own = torch.load(tmp_path / f"{share} {rank}.pt")
            assert all(torch.equal(a, b) for a, b in zip(whole.moments(), moments, strict=True))
            assert [g for g, *_ in its_own] == list(range(rank, 20, 3))
            left_out |= {g: rest for g, *rest in its_own}
        for g, *rest in whole.leave_one_out():
            assert all(torch.equal(a, b) for a, b in zip(rest, left_out[g], strict=True))


def test_memory_does_not_grow():
    total, sizes = Statistics(8, groups=4), []
    for first in range(0, 10_000, 100):
        total.update(torch.zeros(100, 8), range(first, first + 100))
        sizes.append(sum(len(ids) for waiting in total.waiting.values() for ids, _ in waiting))
    assert max(sizes) < 4 * ROWS + 100 and total.count == 10_000
    assert sum(part.scatter.numel() for part in total.parts) == 4 * 64


def test_leaving_a_group_out():
    features = np.random.default_rng(0).normal(2, 1, (103, 6))
    for g, mean, covariance in statistics_of(features).leave_one_out():
        rest = features[np.arange(103) % 20 != g]
        assert np.allclose(mean, rest.mean(0), rtol=1e-12)
        assert np.allclose(covariance, np.cov(rest, rowvar=False), rtol=1e-10, atol=1e-13)


def test_too_few_images_and_nan():
    with pytest.raises(InputError, match="a covariance needs at least 2 images, not 1"):
        statistics_of(np.zeros((1, 3))).moments()
    total = Statistics(3)
    with pytest.raises(InputError, match="the features of image 12 are not finite"):
        total.update(torch.tensor([[0.0, 1, 2], [0, float("nan"), 0]]), range(11, 13))
    assert total.count == 0


def test_files(tmp_path):
    features = np.random.default_rng(0).normal(size=(50, 4))
    moments = Moments(*statistics_of(features).moments(), {"dataset": "é", "images": 50, "crop": None})
    (tmp_path / "new").mkdir()
    moments.save(tmp_path / "new" / "s.npz")
    read = Moments.load(tmp_path / "new" / "s.npz")
    assert torch.equal(read.mu, moments.mu) and torch.equal(read.sigma, moments.sigma) and read.record == moments.record
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["s.npz"]
    with np.load(tmp_path / "new" / "s.npz") as file:
        assert file["mu"].shape == (4,) and file["sigma"].shape == (4, 4)


def test_published_files_have_no_record(tmp_path):
    np.savez_compressed(
        tmp_path / "fid_cifar10_train.npz", mu=np.zeros(4, np.float32), sigma=np.eye(4, dtype=np.float32)
    )
    read = Moments.load(tmp_path / "fid_cifar10_train.npz")
    assert read.record == {} and read.mu.dtype == read.sigma.dtype == torch.float64


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"mu": np.zeros(3)}, "not a statistics file"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"mu \(3,\) and sigma \(2, 2\)"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "negative variances"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "must be real numbers, not <U1"),
        ({"mu": np.array([{}], object), "sigma": np.eye(1)}, "not a statistics file"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "record": np.array("{")}, "not a statistics file"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 3], [3, 1]])}, "negative eigenvalues, from -2 to 4"),
        ({"mu": np.zeros(2) + 1j, "sigma": np.eye(2)}, "must be real numbers, not complex128"),
        ({"mu": np.zeros(2), "sigma": np.eye(2) * 1e308}, r"values above 1e\+100"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "empty"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "record": np.array("[" * 100_000)}, "not a statistics file"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "record": np.array('{"images": -5}')}, "its record says images -5"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "record": np.array('{"images": "x"}')}, "its record says images 'x'"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "record": np.array('{"hash": 3}')}, "its record says hash 3"),
        (b"", "not a statistics file"),
        (b"PK\x03\x04 cut off", "not a statistics file"),
    ],
)
def test_wrong_files(tmp_path, content, what):
    path = tmp_path / "s.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    with pytest.raises(InputError, match=what) as caught:
        Moments.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("values", [10**6, 10**13])
def test_a_file_that_claims_more_values_than_it_holds(tmp_path, values):
    path = tmp_path / "s.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("mu", "sigma"):
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": "<f8", "fortran_order": False, "shape": (values,)}
                np.lib.format.write_array_header_1_0(file, header)
                file.write(b"0" * 80)
    with pytest.raises(InputError, match="not a statistics file"):
        Moments.load(path)
