"""Statistics of image features, streamed, and the Fréchet distance between them."""

import numpy as np
import torch

from config.errors import InputError

MOST_PIXELS = 4096


def pixels(images):
    """uint8 images (n, C, H, W) → their grey levels in [0, 1], float64 (n, C·H·W). For small images only."""
    features = images.flatten(1).double() / 255
    if features.shape[1] > MOST_PIXELS:
        raise InputError(
            f"Sample.features: pixels are for images of at most {MOST_PIXELS} values, not {features.shape[1]}"
        )
    return features


class Statistics:
    """Count, sum and sum of outer products of feature vectors, float64: what mean and covariance need.

    Memory does not grow with the number of vectors, and the statistics of parts add up to those of the whole.
    """

    def __init__(self, dimension):
        self.count = 0
        self.sum = torch.zeros(dimension, dtype=torch.float64)
        self.outer = torch.zeros(dimension, dimension, dtype=torch.float64)

    def update(self, features):
        """Take in features (n, dimension)."""
        features = features.double()
        self.count += len(features)
        self.sum += features.sum(0)
        self.outer.addmm_(features.T, features)

    def merge(self, other):
        """Take in what `other` has seen."""
        self.count += other.count
        self.sum += other.sum
        self.outer += other.outer

    def moments(self):
        """Mean (d,) and covariance (d, d), float64 arrays; the covariance divides by count − 1, as `np.cov` does."""
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 images, not {self.count}")
        mean = self.sum / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return mean.numpy(), covariance.numpy()


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½, the squared 2-Wasserstein distance of two Gaussians.

    mu (d,), sigma (d, d) symmetric, positive semi-definite. With Σ = A Aᵀ the last trace is the sum of the
    singular values of A₁ᵀ A₂: real, and accurate for singular covariances too, where a general matrix square
    root is not. Raises ValueError on shapes that differ and on values that are not finite.
    """
    mu1, mu2, sigma1, sigma2 = (torch.as_tensor(np.asarray(v, np.float64)) for v in (mu1, mu2, sigma1, sigma2))
    if mu1.shape != mu2.shape or sigma1.shape != sigma2.shape or sigma1.shape != (*mu1.shape, *mu1.shape):
        shapes = ", ".join(str(tuple(v.shape)) for v in (mu1, sigma1, mu2, sigma2))
        raise ValueError(f"the statistics have shapes {shapes}; (d,), (d, d) twice are needed")
    if not all(v.isfinite().all() for v in (mu1, mu2, sigma1, sigma2)):
        raise ValueError("the statistics are not finite")

    def root(sigma):  # A with A Aᵀ = Σ
        values, vectors = torch.linalg.eigh(sigma)
        return vectors * values.clamp(min=0).sqrt()

    overlap = torch.linalg.svdvals(root(sigma1).T @ root(sigma2)).sum()
    return float(((mu1 - mu2) ** 2).sum() + sigma1.trace() + sigma2.trace() - 2 * overlap)
