"""Statistics of image features: count, mean and covariance, streamed; and the files that keep them."""

import json
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from scipy.linalg.blas import dsyrk

from pndm.config.errors import InputError
from pndm.config.files import aside
from pndm.runner.processes import ALONE

GROUPS = 20  # of the jackknife
ROWS = 256  # features of a group that are added to its matrix at a time
SKEW = 1e-5  # relative to the largest value: what may be the rounding of a covariance computed in float32
BLOCK = 256  # rows and columns of a triangular matrix that are worked on at a time
LARGEST = 1e100  # above it, products of covariances overflow


class Part:
    """Count, mean (d,) and scatter Σ (f − mean)(f − mean)ᵀ (d, d) of some feature vectors, float64.

    Only the lower triangle of the scatter is kept up to date. Parts are joined by Chan, Golub & LeVeque's update
    (1983): each scatter is about its own mean, so nothing cancels.
    """

    def __init__(self, dimension, device="cpu"):
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    def add(self, features):
        """Take in features (n, d)."""
        features = features.to(self.scatter)
        mean = features.mean(0)
        self._shift(len(features), mean)
        apart = features - mean
        if apart.is_cuda:
            self.scatter.addmm_(apart.T, apart)
        else:  # the lower triangle alone is half the work; BLAS reads rows as columns, so it is its upper one
            dsyrk(1.0, apart.numpy().T, 1.0, self.scatter.numpy().T, overwrite_c=1)

    def join(self, count, mean, scatter):
        """Take in what another part has seen."""
        if count:
            self._shift(count, mean.to(self.mean))
            self.scatter += scatter.to(self.scatter)

    def _shift(self, count, mean):
        """Count `count` more vectors of that mean: the scatter grows by the distance of the two means."""
        shift, total = mean - self.mean, self.count + count
        self.scatter.addr_(shift, shift, alpha=self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total


class Statistics:
    """Statistics of the features of numbered images, apart for each group of images.

    Image i is in group i mod `groups`; the jackknife leaves out one group at a time. A group's features are added to
    its matrix in blocks of 256, in the order of the image numbers. The sums are therefore the same to the last digit
    in whatever order the images come, and on however many processes.

    Memory: `groups` matrices (20 × 33.5 MB at 2048 dimensions) and the features of unfinished blocks. One process that
    sees the images in order holds at most `groups` × 256 of these and a batch. Of several processes, each holds the
    features of all its images (8 kB an image at 2048 dimensions) until `gather`. Then it holds the matrices of its
    share of the groups.
    """

    def __init__(self, dimension, groups=GROUPS, device="cpu"):
        self.dimension, self.device = dimension, device
        self.parts = [None] * groups
        self.waiting = {}  # block, of groups × ROWS image numbers → its images so far, a list of (ids, features)
        self.block = 0  # the first block that is not complete
        self.gathered = None  # after `gather`: counts, means and scatter of all processes

    @property
    def counts(self):
        """Images in each group: of all processes after `gather`, else of this one."""
        if self.gathered:
            return self.gathered[0].tolist()
        counts = torch.tensor([part.count if part else 0 for part in self.parts])
        for ids, _ in chain(*self.waiting.values()):
            counts += (ids % len(counts)).bincount(minlength=len(counts))
        return counts.tolist()

    @property
    def count(self):
        return sum(self.counts)

    def update(self, features, ids):
        """Take in features (n, dimension) of the images numbered `ids` (n). Raises InputError if one is not finite."""
        refuse_infinite(features, ids)
        self._wait(torch.as_tensor(ids), smallest(features.cpu()))
        while sum(len(ids) for ids, _ in self.waiting.get(self.block, ())) == ROWS * len(self.parts):
            self._add(self.block)
            self.block += 1

    def gather(self, team):
        """Share what all processes (`Processes`) have seen: each keeps the groups g with g mod size = its rank."""
        if team.size > 1:
            owners = torch.arange(len(self.parts)) % team.size
            if team.any(self.block > 0):  # one process has seen the first block alone, and perhaps more
                for g, to in enumerate(owners.tolist()):
                    part, self.parts[g] = self.parts[g] or Part(0), None
                    for count, mean, scatter in team.collect((torch.tensor([part.count]), part.mean, part.scatter), to):
                        if count:
                            self._part(g).join(int(count), mean, scatter)
            ids, features = self._take()
            if team.any(features.dtype == torch.float64):
                features = features.double()
            shares = [owners[ids % len(owners)] == rank for rank in range(team.size)]
            self._wait(*(team.exchange([values[share] for share in shares]) for values in (ids, features)))
        self.gathered = self._total(team)

    def moments(self):
        """Mean (d,) and covariance (d, d), float64; the covariance divides by count − 1, as `np.cov` does.

        Raises InputError with fewer than 2 images.
        """
        counts, means, scatter = self.gathered or self._total()
        if counts.sum() < 2:
            raise InputError(f"a covariance needs at least 2 images, not {int(counts.sum())}")
        return tuple(v.cpu() for v in _moments(counts, means, scatter.clone()))

    def leave_one_out(self):
        """(g, mean, covariance) without group g, for each group with images that this process holds."""
        counts, means, scatter = self.gathered or self._total()
        for g, part in enumerate(self.parts):
            if part:
                rest = counts.clone()
                rest[g] = 0
                yield g, *_moments(rest, means, scatter - part.scatter)

    def _total(self, team=ALONE):
        """Counts (groups,), means (groups, d), and the sum (d, d) of the groups' scatters, its lower triangle.

        All processes of `team` call this. Each of them holds groups of its own, so that counts and means are exact.
        """
        self._settle()
        counts, empty = torch.tensor(self.counts), Part(self.dimension, self.device)
        means = torch.stack([(part or empty).mean for part in self.parts])
        counts, means = team.total(counts), team.total(means)
        total = torch.zeros_like(empty.scatter)
        for g, count in enumerate(counts.tolist()):
            if count:
                total += team.broadcast((self.parts[g] or empty).scatter, g % team.size)
        return counts, means.to(self.device), total

    def _part(self, g):
        if self.parts[g] is None:
            self.parts[g] = Part(self.dimension, self.device)
        return self.parts[g]

    def _wait(self, ids, features):
        """Let features wait until their block is complete."""
        blocks = ids // (ROWS * len(self.parts))
        for block in blocks.unique().tolist():
            mine = blocks == block
            self.waiting.setdefault(block, []).append((ids[mine], features[mine]))

    def _take(self, *blocks):
        """What waits of these blocks (none: of all): ids (n,), features (n, d)."""
        parts = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, self.dimension))]
        for block in blocks or list(self.waiting):
            parts += self.waiting.pop(block)
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def _settle(self):
        """Add what waits to the matrices, though its blocks are not complete."""
        for block in sorted(self.waiting):
            self._add(block)

    def _add(self, block):
        """Add a block to the matrices, group by group, in order of the image numbers."""
        ids, features = self._take(block)
        order = ids.argsort()
        groups = ids[order] % len(self.parts)
        for g in groups.unique().tolist():
            self._part(g).add(features[order[groups == g]])


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of features, float64, and the record of where they come from (a dict)."""

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
                arrays = [file[name] for name in ("mu", "sigma")]
                record = dict(json.loads(str(file["record"]))) if "record" in file else {}
        except Exception:  # a damaged file may fail in any way
            raise InputError(f"{path}: not a statistics file, an .npz with mu (d,) and sigma (d, d)") from None
        try:
            mu, sigma = (real(array) for array in arrays)
            check_moments(mu, sigma)
            _check_record(record)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        return cls(mu, sigma, record)


def real(values, device="cpu"):
    """An array or tensor of real numbers as a float64 tensor. Raises ValueError on other values."""
    if not isinstance(values, torch.Tensor):
        values = np.asarray(values)
        if values.dtype.kind not in "fiu":
            raise ValueError(f"mu and sigma must be real numbers, not {values.dtype}")
        values = torch.from_numpy(values.astype(np.float64))
    if values.is_complex():
        raise ValueError(f"mu and sigma must be real numbers, not {values.dtype}")
    return values.to(device, torch.float64)


def check_moments(mu, sigma):
    """The Cholesky factor of sigma, None if sigma is singular. Raises ValueError on what is no mean and covariance.

    A covariance computed in float32 passes: its eigenvalues may fall below 0 by 1e-5 of the largest.
    """
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)} are not of shapes (d,) and (d, d)")
    if not len(mu):
        raise ValueError("mu and sigma are empty")
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError("mu and sigma are not finite")
    largest = sigma.abs().max()
    if max(largest, mu.abs().max()) > LARGEST:
        raise ValueError(f"mu and sigma have values above {LARGEST:g}")
    if (sigma - sigma.T).abs().max() > SKEW * largest:
        raise ValueError("sigma is not symmetric")
    if (sigma.diagonal() < 0).any():
        raise ValueError("sigma has negative variances")
    lower, failed = torch.linalg.cholesky_ex(sigma)
    if not failed:
        return lower
    values = torch.linalg.eigvalsh(sigma)
    if values[0] < -SKEW * values[-1]:
        raise ValueError(f"sigma has negative eigenvalues, from {values[0]:.4g} to {values[-1]:.4g}: no covariance")
    return None


def refuse_infinite(features, ids):
    """Raise InputError if the features (n, d) of an image are not finite."""
    if not (finite := features.isfinite().all(1)).all():
        raise InputError(f"the features of image {ids[int(finite.int().argmin())]} are not finite")


def _check_record(record):
    images = record.get("images")
    if images is not None and (type(images) is not int or images < 1):
        raise ValueError(f"its record says images {images!r}; a whole number above 0 is needed, or null")
    for name in ("features", "hash", "dataset", "path", "split"):
        if not isinstance(value := record.get(name), str | None):
            raise ValueError(f"its record says {name} {value!r}; a text is needed, or null")


def smallest(features):
    """float32 where that holds the same values, as for features of a float32 network."""
    if features.dtype == torch.float32:
        return features
    single = features.float()
    return single if torch.equal(single.double(), features.double()) else features.double()


def mirror(lower):
    """Make a matrix (d, d) symmetric, in place, by its lower triangle. Returns it."""
    for i in range(0, len(lower), BLOCK):
        block = lower[i : i + BLOCK, i : i + BLOCK]
        block.copy_(block.tril() + block.tril(-1).T)
        lower[i : i + BLOCK, i + BLOCK :] = lower[i + BLOCK :, i : i + BLOCK].T
    return lower


def _moments(counts, means, scatter):
    """Mean and covariance of groups; the sum of their scatters is overwritten."""
    counts = counts.to(means)
    mean = counts @ means / counts.sum()
    apart = (means - mean) * counts.sqrt()[:, None]
    return mean, mirror(scatter).addmm_(apart.T, apart).div_(counts.sum() - 1)
