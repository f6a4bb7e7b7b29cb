"""Statistics of image features, streamed; the Fréchet distance between them, and its standard error."""

import json
import math
import zipfile
from dataclasses import dataclass, field

import numpy as np
import torch

from pndm.config.errors import InputError
from pndm.config.files import aside

Array = np.ndarray | torch.Tensor
GROUPS = 20  # of the jackknife
ROWS = 128  # features a group gathers before they enter its matrix, which is then read and written once for all
EPS = 2.0**-52
NEAREST = 5  # which neighbour gives the balls of precision and recall their radius
BLOCK = 256  # columns of a product that knows its triangles


class Statistics:
    """Count, mean and scatter Σ (f − mean)(f − mean)ᵀ of feature vectors, float64, apart for each group of images.

    An image is in group (its number) mod `groups`; the groups are what the jackknife leaves out in turn. Scatters
    are about each group's own mean and joined by Chan, Golub & LeVeque's update (1983), so nothing cancels.
    Memory is that of `groups` matrices (20 × 33.5 MB at 2048 dimensions) and of `groups` × 128 waiting features,
    however many vectors come; the statistics of parts merge into those of the whole.
    """

    def __init__(self, dimension, groups=GROUPS):
        self.counts = [0] * groups
        self.means = torch.zeros(groups, dimension, dtype=torch.float64)
        self.scatters = torch.zeros(groups, dimension, dimension, dtype=torch.float64)
        self._waiting = []

    @property
    def dimension(self):
        return self.means.shape[1]

    @property
    def count(self):
        return sum(self.counts) + sum(len(features) for _, features in self._waiting)

    def update(self, features, ids):
        """Take in features (n, dimension) of the images numbered `ids` (n). Raises InputError if one is not finite."""
        features = features.double().cpu()
        if not (finite := features.isfinite().all(1)).all():
            raise InputError(f"the features of image {ids[int(finite.int().argmin())]} are not finite")
        self._waiting.append((torch.as_tensor(ids) % len(self.counts), features))
        if self.count - sum(self.counts) >= ROWS * len(self.counts):
            self.settle()

    def settle(self):
        """Let the waiting features enter the matrices; whoever reads `counts`, `means`, `scatters` calls this first."""
        if self._waiting:
            groups, features = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            self._waiting = []
            for g in groups.unique().tolist():
                part = features[groups == g]
                mean = part.mean(0)
                part = part - mean
                self._join(g, len(part), mean, part.T @ part)
        return self

    def merge(self, other):
        """Take in what `other`, of as many groups, has seen."""
        self.settle(), other.settle()
        for g, count in enumerate(other.counts):
            if count:
                self._join(g, count, other.means[g], other.scatters[g])

    def gather(self, team):
        """Let the first of several processes (`Processes`) merge what the others have seen."""
        self.settle()
        mine = (torch.tensor(self.counts, dtype=torch.float64), self.means, self.scatters)
        for counts, means, scatters in team.from_others(mine):
            other = Statistics(0, len(self.counts))
            other.counts, other.means, other.scatters = counts.long().tolist(), means, scatters
            self.merge(other)

    def _join(self, g, count, mean, scatter):
        shift, total = mean - self.means[g], self.counts[g] + count
        self.scatters[g] += scatter
        self.scatters[g].addr_(shift, shift, alpha=self.counts[g] * count / total)
        self.means[g] += shift * (count / total)
        self.counts[g] = total

    def moments(self):
        """Mean (d,) and covariance (d, d), float64; the covariance divides by count − 1, as `np.cov` does.

        Raises InputError with fewer than 2 images.
        """
        self.settle()
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 images, not {self.count}")
        return self._moments(self.scatters.sum(0), self.counts)

    def leave_one_out(self):
        """The moments without each group in turn, of those that have images."""
        scatter = self.settle().scatters.sum(0)
        for g, count in enumerate(self.counts):
            if count:
                yield self._moments(scatter - self.scatters[g], [*self.counts[:g], 0, *self.counts[g + 1 :]])

    def _moments(self, scatter, counts):
        counts = torch.tensor(counts, dtype=torch.float64)
        mean = counts @ self.means / counts.sum()
        apart = (self.means - mean) * counts.sqrt()[:, None]
        return mean, scatter.addmm_(apart.T, apart).div_(counts.sum() - 1)


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of features, and the record of where they come from (a dict)."""

    mu: torch.Tensor
    sigma: torch.Tensor
    record: dict = field(default_factory=dict)

    def save(self, path):
        """Write a statistics file: `mu`, `sigma`, and `record`, a JSON string."""
        with aside(path) as other, open(other, "wb") as file:
            np.savez(file, mu=self.mu.numpy(), sigma=self.sigma.numpy(), record=np.array(json.dumps(self.record)))

    @classmethod
    def load(cls, path):
        """Read a statistics file, ours or one of only `mu` and `sigma`. Raises InputError when it is not one."""
        try:
            with np.load(path, allow_pickle=False) as file:
                mu, sigma = (torch.from_numpy(np.array(file[name], np.float64)) for name in ("mu", "sigma"))
                record = dict(json.loads(str(file["record"]))) if "record" in file else {}
        except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
            raise InputError(f"{path}: not a statistics file, an .npz with mu (d,) and sigma (d, d)") from None
        try:
            _check(mu, sigma)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        return cls(mu, sigma, record)


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½, the squared 2-Wasserstein distance of two Gaussians.

    mu (d,), sigma (d, d) symmetric, positive semi-definite; arrays or tensors, computed in float64, on the GPU that
    the process uses if it uses one. Returns a float, not below 0. Raises ValueError on shapes that differ, on values
    that are not finite, and on a covariance that is none.

    Σ₁Σ₂ has the eigenvalues of the symmetric LᵀΣ₂L, where Σ₁ = LLᵀ, which no general matrix square root is needed
    for. They are exact to ε·λ_max, their roots to ε·λ_max/√λ: too little when a covariance is nearly singular. Then
    the trace is the sum of the singular values of A₁ᵀA₂, where Σ = AAᵀ has A of full numerical rank.
    """
    given = (mu1, sigma1, mu2, sigma2)
    mu1, sigma1, mu2, sigma2 = (torch.as_tensor(v, dtype=torch.float64, device=_device()) for v in given)
    _check(mu1, sigma1)
    _check(mu2, sigma2)
    if mu1.shape != mu2.shape:
        raise ValueError(f"the statistics have {len(mu1)} and {len(mu2)} dimensions")
    apart = ((mu1 - mu2) ** 2).sum() + sigma1.trace() + sigma2.trace()

    lower, failed = torch.linalg.cholesky_ex(sigma1)
    if not failed:
        values = torch.linalg.eigvalsh(_congruent(lower, sigma2))
        distance = apart - 2 * values.clamp(min=0).sqrt().sum()
        error = EPS * values[-1] * (1 / values).sum().sqrt()  # rounding errors of eigenvalues add up as random ones
        if values[0] > 0 and error < 1e-9 * distance:
            return float(distance)
    trace = torch.linalg.svdvals(_root(sigma1).T @ _root(sigma2)).sum()
    return max(0.0, float(apart - 2 * trace))


def standard_error(statistics, mu, sigma):
    """Standard error of the Fréchet distance from the images in `statistics` to the reference `mu`, `sigma`.

    By the delete-a-group jackknife: √((G − 1)/G · Σ (θ_g − θ̄)²), θ_g the distance without group g (Efron &
    Stein 1981). The reference counts as fixed: it is the error from drawing other images, of the same number. None
    when fewer than 3 images, or fewer than 2 groups, leave nothing to delete.
    """
    counts = [count for count in statistics.settle().counts if count]
    if len(counts) < 2 or sum(counts) - max(counts) < 2:
        return None
    device = _device()
    mu, sigma = mu.to(device), sigma.to(device)
    trace = sigma.trace()
    span = None
    if statistics.count <= len(mu):  # all parts lie in the span of the images: as few dimensions as they are do
        span, _ = _range(statistics.moments()[1].to(device))
        sigma = span.T @ sigma @ span
    lower, failed = torch.linalg.cholesky_ex(sigma)
    root = _root(sigma) if failed else lower
    distances = []
    for mean, covariance in statistics.leave_one_out():
        mean, covariance = mean.to(device), covariance.to(device)
        apart = ((mean - mu) ** 2).sum() + covariance.trace() + trace
        if span is not None:
            covariance = span.T @ covariance @ span
        product = root.T @ covariance @ root if failed else _congruent(root, covariance)
        distances.append(float(apart - 2 * torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()))
    return math.sqrt((len(counts) - 1) * np.var(distances))


def kid(features, reference, subsets=100, size=1000):
    """Kernel Inception distance of features (n, d) and (m, d): Bińkowski et al. 2018, arXiv:1801.01401.

    The unbiased squared MMD with the kernel (x·y/d + 1)³, its mean and standard deviation over random subsets of `size`
    (or all, where there are fewer), drawn from a fixed seed. It may fall below 0. Where all subsets are the same, there
    is one and no deviation. Raises ValueError on fewer than 2 vectors.
    """
    size = min(size, len(features), len(reference))
    if size < 2:
        raise ValueError(f"a kernel distance needs at least 2 vectors on each side, not {size}")
    if size == len(features) == len(reference):
        subsets = 1
    rng = np.random.default_rng(0)
    values = []
    for _ in range(subsets):
        x, y = (v[rng.permutation(len(v))[:size]].to(_device()).double() for v in (features, reference))
        (xx, yy, xy) = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = sum((k.sum() - k.trace()) / (size * (size - 1)) for k in (xx, yy))
        values.append(float(within - 2 * xy.mean()))
    deviation = float(np.std(values)) if subsets > 1 else None
    return {"value": float(np.mean(values)), "deviation": deviation, "subsets": subsets, "size": size}


def prdc(features, reference, nearest=NEAREST):
    """Precision, recall, density and coverage of features (n, d) against (m, d): Naeem et al. 2020, arXiv:2002.09797.

    By balls about each point through its `nearest`th neighbour, so n and m are above `nearest`.
    """
    x, y = (v.to(_device()).double() for v in (features, reference))

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


# Beyond the Fréchet distance, from the features themselves: name → function (features, those of the reference) → dict.
METRICS = {"kid": kid, "prdc": prdc}


def _device():
    """The GPU that this process uses, if it does."""
    return "cuda" if torch.cuda.is_initialized() else "cpu"


def _check(mu, sigma):
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)} are not of shapes (d,) and (d, d)")
    largest, skew = (torch.linalg.vector_norm(v, torch.inf) for v in (sigma, sigma - sigma.T))
    if not (mu.isfinite().all() and largest.isfinite()):
        raise ValueError("mu and sigma are not finite")
    if skew > 1e-5 * largest:
        raise ValueError("sigma is not symmetric")
    if (sigma.diagonal() < 0).any():
        raise ValueError("sigma has negative variances")


def _congruent(lower, sigma):
    """The lower triangle of LᵀΣL (d, d), at a third of the multiplications of two full products."""
    product = torch.zeros_like(sigma)
    for j in range(0, len(sigma), BLOCK):
        product[j:, j : j + BLOCK] = lower[j:, j:].T @ (sigma[j:, j:] @ lower[j:, j : j + BLOCK])
    return product


def _range(sigma):
    """Eigenvectors (d, r) and eigenvalues (r,) of Σ above its rounding errors, of which the rest are made."""
    values, vectors = torch.linalg.eigh(sigma)
    real = values > max(len(sigma), 16) * EPS * values[-1]
    return vectors[:, real], values[real]


def _root(sigma):
    """A (d, r) with AAᵀ = Σ, r its numerical rank."""
    vectors, values = _range(sigma)
    return vectors * values.sqrt()
