"""The Fréchet distance against SciPy, closed forms and pytorch-fid; its standard error; KID, precision to coverage."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import statistics_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pndm.runner.measure.distance import frechet_distance, kid, prdc, standard_error
from pndm.runner.measure.features import make_extractor
from pndm.runner.measure.measurement import Measurement
from pndm.runner.measure.statistics import Moments

DIMENSIONS = st.integers(1, 12)
SEEDS = st.integers(0, 2**32 - 1)


def gaussian(rng, d, rank=None):
    """A mean, and a covariance of that rank."""
    factor = rng.standard_normal((d, d if rank is None else rank))
    return rng.standard_normal(d), factor @ factor.T


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
    check_properties(d, seed, [data.draw(st.integers(0, d)) for _ in range(2)])


def test_properties_where_cholesky_takes_a_singular_covariance():
    """Its last pivot is rounding, and the root of that is 1e-8: seen as a distance wrong by 7e-8."""
    check_properties(2, 162, [1, 2])
    check_properties(2, 162, [2, 1])


def check_properties(d, seed, ranks):
    rng = np.random.default_rng(seed)
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
        ((np.zeros(2), np.array([[1.0, 3], [3, 1]])), "sigma has negative eigenvalues, from -2 to 4"),
        ((np.zeros(2), np.eye(2) * 1e308), "values above 1e\\+100"),
        ((np.zeros(2) + 1j, np.eye(2)), "must be real numbers, not complex128"),
    ],
)
def test_wrong_statistics(a, what):
    for pair in itertools.permutations((a, (np.zeros(2), np.eye(2)))):
        with pytest.raises(ValueError, match=what.replace("3 and 2", "[23] and [23]")):
            frechet_distance(*pair[0], *pair[1])


def test_empty_statistics():
    with pytest.raises(ValueError, match="mu and sigma are empty"):
        frechet_distance(np.zeros(0), np.zeros((0, 0)), np.zeros(0), np.zeros((0, 0)))


@pytest.mark.parametrize("n", [20, 64, 5000])
def test_a_covariance_computed_in_float32_is_none_with_negative_eigenvalues(n):
    """Fewer images than dimensions: rounding makes some eigenvalues negative."""
    rng = np.random.default_rng(5)
    features = (rng.standard_normal((n, 64)) * np.logspace(0, -4, 64) + 3).astype(np.float32)
    sigma = np.cov(features, rowvar=False, dtype=np.float32)
    assert np.linalg.eigvalsh(sigma.astype(np.float64))[0] < 0 or n >= 64
    assert frechet_distance(features.mean(0), sigma, np.zeros(64), np.eye(64)) >= 0


def jackknifed(features, reference):
    """The standard error by its definition: the distance without each of twenty groups."""
    values = []
    for g in range(20):
        rest = features[np.arange(len(features)) % 20 != g]
        values.append(frechet_distance(rest.mean(0), np.cov(rest, rowvar=False), *reference))
    return np.sqrt(19 / 20 * ((values - np.mean(values)) ** 2).sum())


def moments_of(features):
    return torch.from_numpy(features.mean(0)), torch.from_numpy(np.cov(features, rowvar=False))


@pytest.mark.parametrize(("n", "d"), [(90, 6), (30, 50), (25, 24)])
def test_standard_error_is_the_jackknife(n, d):
    rng = np.random.default_rng(0)
    features, reference = rng.standard_normal((n, d)), moments_of(rng.standard_normal((3 * d, d)) * 1.3)
    wanted = jackknifed(features, reference)
    assert standard_error(statistics_of(features), *reference) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("n", "d"), [(200, 12), (30, 50), (400, 12)])
def test_standard_error_to_a_singular_reference_is_the_jackknife(n, d):
    rng = np.random.default_rng(0)
    features, reference = rng.standard_normal((n, d)), moments_of(rng.standard_normal((5, d)) * 2 + 1)
    wanted = jackknifed(features, reference)
    assert standard_error(statistics_of(features), *reference) == pytest.approx(wanted, rel=1e-5)


def test_standard_error_is_the_true_spread():
    """200 drawings of 1,000 Gaussian vectors: the spread of their distances is what each claims, to a fifth."""
    rng, d = np.random.default_rng(0), 8
    reference = torch.full((d,), 0.1, dtype=torch.float64), torch.diag(torch.linspace(0.6, 2.4, d, dtype=torch.float64))
    drawn = [statistics_of(rng.standard_normal((1000, d)) * np.sqrt(np.linspace(0.5, 2, d))) for _ in range(200)]
    spread = np.std([frechet_distance(*s.moments(), *reference) for s in drawn])
    claimed = np.sqrt(np.mean([standard_error(s, *reference) ** 2 for s in drawn]))
    assert claimed == pytest.approx(spread, rel=0.2)


def test_standard_error_of_too_few():
    reference = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    assert standard_error(statistics_of(np.eye(2)), *reference) is None
    assert standard_error(statistics_of(np.random.default_rng(0).normal(size=(50, 2)), groups=1), *reference) is None
    assert standard_error(statistics_of(np.array([[0.0, 1], [1, 0], [2, 5]])), *reference) >= 0


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


def test_the_deviation_of_kid_is_the_spread_over_subsets_that_have_nothing_in_common():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 20_000, 4, generator=rng, dtype=torch.float64)
    x = x + 0.2
    apart = [kid(a, b)["value"] for a, b in zip(x.split(200), y.split(200), strict=True)]
    found = kid(x, y, subsets=100, size=200)
    assert (found["subsets"], found["size"]) == (100, 200)
    assert found["deviation"] == pytest.approx(np.std(apart), rel=0.25)
    assert found["value"] == pytest.approx(np.mean(apart), abs=3 * np.std(apart) / 10)


@pytest.mark.slow
def test_metrics_do_not_depend_on_the_order_in_which_images_come():
    images = torch.randint(0, 256, (1200, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = make_extractor("pixels", (1, 4, 4))
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
