"""Distances between features: the Fréchet distance and its standard error, KID, precision to coverage."""

import math

import numpy as np
import torch

from pndm.model.machine import device_of
from pndm.runner.measure.statistics import BLOCK, check_moments, real
from pndm.runner.processes import ALONE

Array = np.ndarray | torch.Tensor
EPS = 2.0**-52
ROWS = 128  # rows of a matrix of distances that are in memory at once
NEAREST = 5  # the neighbour that gives the balls of precision and recall their radius


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array, device: str | torch.device = "cpu") -> float:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½, the squared 2-Wasserstein distance of two Gaussians.

    mu (d,), sigma (d, d) symmetric, positive semi-definite; arrays or tensors, computed in float64 on `device`, which
    must know float64. Returns a float, not below 0. Raises ValueError on shapes that differ, on values that are not
    finite or not real, on a sigma that is no covariance, and on a device that is not there.

    Σ₁Σ₂ has the eigenvalues of the symmetric LᵀΣ₂L, where Σ₁ = LLᵀ; their roots add up to the trace. Rounding moves
    an eigenvalue λ by about ε·λ_max, and its root by ε·λ_max/(2√λ) to first order. When the sum of these could matter,
    or the smallest λ is itself no more than rounding, the trace is computed from A₁ᵀA₂ instead: it is the sum of its
    singular values, where Σ = AAᵀ and A has full numerical rank.

    What the second way cannot mend: Σ is known to ε·‖Σ‖, so an eigenvalue below d·ε·‖Σ‖ could be 0. It is taken as 0.
    If it is none, the distance is wrong by at most 2 √(d·ε·‖Σ₁‖‖Σ₂‖) for each such eigenvalue.

        >>> import numpy as np
        >>> from pndm import frechet_distance
        >>> round(frechet_distance(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2)), 6)
        4.0
    """
    place = device_of(device)
    mu1, sigma1, mu2, sigma2 = (real(values, place) for values in (mu1, sigma1, mu2, sigma2))
    lower = check_moments(mu1, sigma1)
    check_moments(mu2, sigma2)
    if mu1.shape != mu2.shape:
        raise ValueError(f"the statistics have {len(mu1)} and {len(mu2)} dimensions")
    apart = ((mu1 - mu2) ** 2).sum() + sigma1.trace() + sigma2.trace()
    if lower is not None:
        values = torch.linalg.eigvalsh(_congruent(lower, sigma2))
        if values[0] > max(len(values), 100) * EPS * values[-1]:
            distance = apart - 2 * values.sqrt().sum()
            error = EPS * values[-1] * (1 / values).sum().sqrt()  # roundings are independent: their squares add up
            if error < 1e-9 * distance:
                return float(distance)
    trace = torch.linalg.svdvals(_root(sigma1).T @ _root(sigma2)).sum()
    return max(0.0, float(apart - 2 * trace))


def standard_error(statistics, mu, sigma, team=ALONE):
    """Standard error of the Fréchet distance from the images in `statistics` to the reference `mu`, `sigma`.

    By the delete-a-group jackknife: √((G − 1)/G · Σ (θ_g − θ̄)²), θ_g the distance without group g (Efron &
    Stein 1981). The reference counts as fixed: it is the error from drawing other images, of the same number. None
    when fewer than 3 images, or fewer than 2 groups, leave nothing to delete.

    After `Statistics.gather`, all processes of `team` call this, each computes the distances of its own groups.
    """
    counts = torch.tensor(statistics.counts)
    groups = counts > 0
    if groups.sum() < 2 or counts.sum() - counts.max() < 2:
        return None
    mu, sigma = mu.to(statistics.device), sigma.to(statistics.device)
    trace = sigma.trace()
    span = None
    if statistics.count <= len(mu):  # all covariances lie in the span of the images, which has fewer dimensions
        span, _ = _range(statistics.moments()[1].to(statistics.device))
        sigma = span.T @ sigma @ span
    lower, failed = torch.linalg.cholesky_ex(sigma)
    root = _root(sigma) if failed else lower
    distances = torch.zeros(len(counts), dtype=torch.float64)
    for g, mean, covariance in statistics.leave_one_out():
        apart = ((mean - mu) ** 2).sum() + covariance.trace() + trace
        if span is not None:
            covariance = span.T @ covariance @ span
        product = root.T @ covariance @ root if failed else _congruent(root, covariance)
        distances[g] = apart - 2 * torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
        team.beat()
    distances = team.total(distances)
    return math.sqrt((int(groups.sum()) - 1) * np.var(distances[groups].numpy()))


def kid(features, reference, device="cpu", subsets=100, size=1000):
    """Kernel Inception distance of features (n, d) and (m, d): Bińkowski et al. 2018, arXiv:1801.01401.

    The unbiased squared MMD with the kernel (x·y/d + 1)³, its mean and standard deviation over random subsets of `size`
    (or of the smaller side, where that has fewer), drawn from a fixed seed. It may fall below 0. With the same number
    on both sides, at most `size`, all subsets are the same: then there is one, and no deviation. Raises ValueError on
    fewer than 2 vectors.
    """
    size = min(size, len(features), len(reference))
    if size < 2:
        raise ValueError(f"a kernel distance needs at least 2 vectors on each side, not {size}")
    if size == len(features) == len(reference):
        subsets = 1
    rng = np.random.default_rng(0)
    values = []
    for _ in range(subsets):
        x, y = (v[rng.permutation(len(v))[:size]].to(device).double() for v in (features, reference))
        (xx, yy, xy) = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = sum((k.sum() - k.trace()) / (size * (size - 1)) for k in (xx, yy))
        values.append(float(within - 2 * xy.mean()))
    deviation = float(np.std(values)) if subsets > 1 else None
    return {"value": float(np.mean(values)), "deviation": deviation, "subsets": subsets, "size": size}


def prdc(features, reference, device="cpu", nearest=NEAREST):
    """Precision, recall, density and coverage of features (n, d) against (m, d): Naeem et al. 2020, arXiv:2002.09797.

    Each point has a ball through its `nearest`th neighbour, so n and m must be above `nearest`. Precision: the share of
    images in some ball of the reference. Recall: the share of the reference in some ball of the images. Density: balls
    of the reference around an image, over `nearest`. Coverage: the share of the reference's balls that hold an image.
    """
    x, y = (v.to(device).double() for v in (features, reference))

    def rows(a, b):  # squared distances, a block of a at a time
        squares = (b * b).sum(1)
        for part in a.split(ROWS):
            yield (part * part).sum(1)[:, None] + squares - 2 * part @ b.T

    def radii(a):  # a point is its own nearest
        return torch.cat([block.kthvalue(nearest + 1, dim=1).values for block in rows(a, a)])

    around_x, around_y = radii(x), radii(y)
    balls = torch.cat([(block < around_y).sum(1) for block in rows(x, y)])  # of the reference that each image lies in
    recalled, covered = [], []
    for block, around in zip(rows(y, x), around_y.split(ROWS), strict=True):
        recalled.append((block < around_x).any(1))
        covered.append((block < around[:, None]).any(1))
    return {
        "precision": float((balls > 0).double().mean()),
        "recall": float(torch.cat(recalled).double().mean()),
        "density": float(balls.sum()) / (nearest * len(x)),
        "coverage": float(torch.cat(covered).double().mean()),
        "nearest": nearest,
    }


# Beyond the Fréchet distance, from the features themselves: name → function (features, the reference's, device) → dict.
METRICS = {"kid": kid, "prdc": prdc}


def _congruent(lower, sigma):
    """The lower triangle of LᵀΣL (d, d), in blocks that leave out the zeros of L: d³ multiplications, not 2 d³."""
    product = torch.zeros_like(sigma)
    for j in range(0, len(sigma), BLOCK):
        right = sigma[j:, j:] @ lower[j:, j : j + BLOCK]
        for i in range(j, len(sigma), BLOCK):
            product[i : i + BLOCK, j : j + BLOCK] = lower[i:, i : i + BLOCK].T @ right[i - j :]
    return product


def _range(sigma):
    """Eigenvectors (d, r) and eigenvalues (r,) of Σ that are larger than its rounding errors."""
    values, vectors = torch.linalg.eigh(sigma)
    real = values > max(len(sigma), 16) * EPS * values[-1]
    return vectors[:, real], values[real]


def _root(sigma):
    """A (d, r) with AAᵀ = Σ, r its numerical rank."""
    vectors, values = _range(sigma)
    return vectors * values.sqrt()
