"""Images by name: `open_dataset` gives uint8 tensors, `encode` and `decode` go between them and what a network sees."""

import numpy as np
import torch

from config.errors import InputError


def open_dataset(section):
    """The dataset of a `Dataset` section: len() images, [i] a uint8 tensor (C, H, W).

    Raises InputError when its files are missing, saying which go where.
    """
    if section.dataset not in _READERS:
        raise InputError(f"Dataset.dataset {section.dataset} has no reader; those that have are {', '.join(_READERS)}")
    images = _READERS[section.dataset](section)
    shape, wanted = tuple(images[0].shape), (section.channels, section.image_size, section.image_size)
    if shape != wanted:
        raise InputError(f"Dataset: {section.dataset} has images of {shape}, the experiment says {wanted}")
    return images


def _digits(section):
    """The 1,797 handwritten 8×8 digits of scikit-learn (UCI, Alpaydin & Kaynak 1998), grey levels 0 … 16 → 0 … 255."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(np.rint(load_digits().images[:, None] * (255 / 16)).astype(np.uint8))


_READERS = {"DIGITS": _digits}


def encode(images, section):
    """uint8 images (n, C, H, W) → float32 as the network sees them, without noise or flips."""
    x = images.float() / 255
    if section.logit_transform:
        x = 1e-6 + (1 - 2e-6) * x
        return torch.log(x) - torch.log1p(-x)
    return 2 * x - 1 if section.rescaled else x


def decode(x, section):
    """What the network sees (n, C, H, W) → uint8 images, rounded to the nearest level."""
    if section.logit_transform:
        x = torch.sigmoid(x)
    elif section.rescaled:
        x = (x + 1) / 2
    return (x * 255).round().clamp(0, 255).to(torch.uint8)
