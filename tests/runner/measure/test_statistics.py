"""The Fréchet distance against SciPy, closed forms and pytorch-fid; streamed statistics against whole ones."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pndm.config.errors import InputError
from pndm.runner.measure.statistics import ROWS, Moments, Statistics, frechet_distance, standard_error

DIMENSIONS = st.integers(1, 12)
SEEDS = st.integers(0, 2**32 - 1)


def gaussian(rng, d, rank=None):
    """A mean, and a covariance of that rank."""
    factor = rng.standard_normal((d, d if rank is None else rank))
    return rng.standard_normal(d), factor @ factor.T


def statistics(features, groups=20, batch=None):
    features = torch.as_tensor(np.asarray(features, np.float64))
    total = Statistics(features.shape[1], groups)
    for first in range(0, len(features), batch or len(features)):
        part = features[first : first + (batch or len(features))]
        total.update(part, range(first, first + len(part)))
    return total


def by_sqrtm(mu1, sigma1, mu2, sigma2):
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root).real


@pytest.mark.parametrize("d", [1, 2, 7, 64, 300])
def test_against_scipy(d):
    rng = np.random.default_rng(d)
    samples = [rng.standard_normal((4 * d + 2, d)) * rng.uniform(0.1, 3, d) for _ in range(2)]
    (mu1, s1), (mu2, s2) = ((x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))) for x in samples)
    value = frechet_distance(mu1, s1, mu2, s2)
    assert isinstance(value, float) and value == pytest.approx(by_sqrtm(mu1, s1, mu2, s2), rel=1e-10)


def test_against_pytorch_fid():
    package = pytest.importorskip("pytorch_fid.fid_score")
    rng = np.random.default_rng(0)
    a, b = gaussian(rng, 128), gaussian(rng, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            theirs = package.calculate_frechet_distance(*a, *b)
        except TypeError:
            pytest.skip("this SciPy's sqrtm has no disp, which pytorch-fid passes")
    assert frechet_distance(*a, *b) == pytest.approx(theirs, rel=1e-8)


@given(DIMENSIONS, SEEDS, st.data())
@settings(max_examples=60, deadline=None)
def test_properties(d, seed, data):
    rng = np.random.default_rng(seed)
    ranks = [data.draw(st.integers(0, d)) for _ in range(2)]
    a, b = (gaussian(rng, d, rank) for rank in ranks)
    value, scale = frechet_distance(*a, *b), sum(np.trace(s) + m @ m for m, s in (a, b))
    assert value >= 0
    assert frechet_distance(*b, *a) == pytest.approx(value, abs=1e-9 * scale)
    assert frechet_distance(*a, *a) <= 1e-10 * scale
    q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    turned = [(q @ m, q @ s @ q.T) for m, s in (a, b)]
    assert frechet_distance(*turned[0], *turned[1]) == pytest.approx(value, abs=1e-7 * scale)
    shift, factor = rng.standard_normal(d), 3.0
    moved = [(factor * m + shift, factor**2 * s) for m, s in (a, b)]
    assert frechet_distance(*moved[0], *moved[1]) == pytest.approx(factor**2 * value, abs=1e-9 * scale)


@pytest.mark.parametrize("ranks", [(0, 0), (0, 5), (3, 40), (17, 17), (40, 40)])
def test_singular_covariances_that_commute(ranks):
    """Σ₁, Σ₂ with common eigenvectors: the distance is Σ (√λ₁ − √λ₂)²."""
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    values = [np.where(np.arange(40) < r, rng.uniform(0.1, 5, 40), 0)[rng.permutation(40)] for r in ranks]
    sigmas = [(q * v) @ q.T for v in values]
    truth = ((np.sqrt(values[0]) - np.sqrt(values[1])) ** 2).sum()
    zero = np.zeros(40)
    assert frechet_distance(zero, sigmas[0], zero, sigmas[1]) == pytest.approx(truth, rel=1e-12, abs=1e-12)


def test_singular_covariances_on_lines():
    """Σ = aaᵀ and bbᵀ: tr (Σ₁Σ₂)^½ = |a·b|."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 500))
    value = frechet_distance(np.zeros(500), np.outer(a, a), np.zeros(500), np.outer(b, b))
    assert value == pytest.approx(a @ a + b @ b - 2 * abs(a @ b), rel=1e-12)


@pytest.mark.parametrize("lowest", [-2, -5, -8, -11])
def test_ill_conditioned_covariances(lowest):
    rng = np.random.default_rng(3)
    q = np.linalg.qr(rng.standard_normal((100, 100)))[0]
    values = np.logspace(1, lowest, 100)
    others, zero = rng.permutation(values), np.zeros(100)
    truth = ((np.sqrt(values) - np.sqrt(others)) ** 2).sum()
    sigmas = [((q * v) @ q.T + ((q * v) @ q.T).T) / 2 for v in (values, others)]
    assert frechet_distance(zero, sigmas[0], zero, sigmas[1]) == pytest.approx(truth, rel=1e-9)


def test_fewer_samples_than_dimensions():
    """In the samples' own span, where nothing is singular for the first: the same distance."""
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((20, 200)), rng.standard_normal((500, 200))
    a, b = ((v.mean(0), np.cov(v, rowvar=False)) for v in (x, y))
    vectors = np.linalg.eigh(a[1])[1]
    span = vectors[:, -19:]
    inner = span.T @ a[1] @ span, span.T @ b[1] @ span
    trace = np.trace(scipy.linalg.sqrtm(inner[0] @ inner[1])).real
    truth = ((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * trace
    assert frechet_distance(*a, *b) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize(
    ("a", "what"),
    [
        ((np.zeros(3), np.eye(2)), r"mu \(3,\) and sigma \(2, 2\) are not of shapes"),
        ((np.zeros((2, 2)), np.eye(2)), "are not of shapes"),
        ((np.zeros(3), np.eye(3)), "the statistics have 3 and 2 dimensions"),
        ((np.full(2, np.nan), np.eye(2)), "mu and sigma are not finite"),
        ((np.zeros(2), np.full((2, 2), np.inf)), "mu and sigma are not finite"),
        ((np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]])), "sigma is not symmetric"),
    ],
)
def test_wrong_statistics(a, what):
    for pair in itertools.permutations((a, (np.zeros(2), np.eye(2)))):
        with pytest.raises(ValueError, match=what.replace("3 and 2", "[23] and [23]")):
            frechet_distance(*pair[0], *pair[1])


@pytest.mark.parametrize("batch", [1, 7, 100, 5000])
def test_streamed_moments(batch):
    features = np.random.default_rng(0).normal(100, 1, (5000 if batch > 1 else 300, 5))
    mean, covariance = statistics(features, batch=batch).moments()
    assert np.allclose(mean, features.mean(0), rtol=1e-13)
    assert np.allclose(covariance, np.cov(features, rowvar=False), rtol=1e-11, atol=1e-13)


@given(SEEDS, st.lists(st.integers(1, 40), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_merging_in_any_order(seed, sizes, random):
    features = torch.from_numpy(np.random.default_rng(seed).normal(3, 1, (sum(sizes) + 2, 4)))
    whole = statistics(features)
    ends = np.cumsum([0, *sizes[:-1], sizes[-1] + 2])
    parts = list(itertools.pairwise(ends.tolist()))
    random.shuffle(parts)
    merged = Statistics(4)
    for first, last in parts:
        part = Statistics(4)
        part.update(features[first:last], range(first, last))
        merged.merge(part)
    assert merged.count == whole.count == len(features) and merged.counts == whole.settle().counts
    for a, b in zip(merged.moments(), whole.moments(), strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()
    reference = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    errors = [standard_error(s, *reference) for s in (merged, whole)]
    assert errors[0] == errors[1] or errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_memory_does_not_grow():
    total, sizes = Statistics(8, groups=4), []
    for first in range(0, 10_000, 100):
        total.update(torch.zeros(100, 8), range(first, first + 100))
        sizes.append(sum(len(features) for _, features in total._waiting))
    assert max(sizes) < 4 * ROWS + 100 and total.count == 10_000 and total.scatters.numel() == 4 * 64


def test_leaving_a_group_out():
    features = np.random.default_rng(0).normal(2, 1, (103, 6))
    for g, (mean, covariance) in enumerate(statistics(features).leave_one_out()):
        rest = features[np.arange(103) % 20 != g]
        assert np.allclose(mean, rest.mean(0), rtol=1e-12)
        assert np.allclose(covariance, np.cov(rest, rowvar=False), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("n", "d"), [(90, 6), (30, 50), (25, 24)])
def test_standard_error_is_the_jackknife(n, d):
    rng = np.random.default_rng(0)
    features, other = rng.standard_normal((n, d)), rng.standard_normal((3 * d, d)) * 1.3
    reference = torch.from_numpy(other.mean(0)), torch.from_numpy(np.cov(other, rowvar=False))
    values = []
    for g in range(20):
        rest = features[np.arange(n) % 20 != g]
        values.append(frechet_distance(rest.mean(0), np.cov(rest, rowvar=False), *reference))
    error = np.sqrt(19 / 20 * ((values - np.mean(values)) ** 2).sum())
    assert standard_error(statistics(features), *reference) == pytest.approx(error, rel=1e-5)


def test_standard_error_to_a_singular_reference():
    rng = np.random.default_rng(0)
    features, other = rng.standard_normal((200, 12)), rng.standard_normal((5, 12))
    reference = torch.from_numpy(other.mean(0)), torch.from_numpy(np.cov(other, rowvar=False))
    assert (
        0
        < standard_error(statistics(features), *reference)
        < frechet_distance(features.mean(0), np.cov(features, rowvar=False), *reference)
    )


def test_standard_error_is_the_true_spread():
    """200 drawings of 1,000 Gaussian vectors: the spread of their distances is what each claims, to a fifth."""
    rng, d = np.random.default_rng(0), 8
    reference = torch.full((d,), 0.1, dtype=torch.float64), torch.diag(torch.linspace(0.6, 2.4, d, dtype=torch.float64))
    drawn = [statistics(rng.standard_normal((1000, d)) * np.sqrt(np.linspace(0.5, 2, d))) for _ in range(200)]
    spread = np.std([frechet_distance(*s.moments(), *reference) for s in drawn])
    claimed = np.sqrt(np.mean([standard_error(s, *reference) ** 2 for s in drawn]))
    assert claimed == pytest.approx(spread, rel=0.2)


def test_standard_error_of_too_few():
    reference = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    assert standard_error(statistics(np.eye(2)), *reference) is None
    assert standard_error(statistics(np.random.default_rng(0).normal(size=(50, 2)), groups=1), *reference) is None
    assert standard_error(statistics(np.array([[0.0, 1], [1, 0], [2, 5]])), *reference) >= 0


def test_too_few_images_and_nan():
    with pytest.raises(InputError, match="a covariance needs at least 2 images, not 1"):
        statistics(np.zeros((1, 3))).moments()
    total = Statistics(3)
    with pytest.raises(InputError, match="the features of image 12 are not finite"):
        total.update(torch.tensor([[0.0, 1, 2], [0, float("nan"), 0]]), range(11, 13))
    assert total.count == 0


def test_files(tmp_path):
    features = np.random.default_rng(0).normal(size=(50, 4))
    moments = Moments(*statistics(features).moments(), {"dataset": "é", "images": 50, "crop": None})
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
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "not a statistics file"),
        ({"mu": np.array([{}], object), "sigma": np.eye(1)}, "not a statistics file"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "record": np.array("{")}, "not a statistics file"),
        (b"", "not a statistics file"),
        (b"PK\x03\x04 cut off", "not a statistics file"),
    ],
)
def test_wrong_files(tmp_path, content, what):
    path = tmp_path / "s.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    with pytest.raises(InputError, match=what) as caught:
        Moments.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
