"""Images by name: `open_dataset` gives uint8 tensors, `batches` reads them ahead; `encode` and `decode` go between
them and what a network sees, `to_picture` and `from_picture` between them and Pillow's images."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image

from pndm.config.errors import InputError
from pndm.config.published import only_here
from pndm.dataset.readers import KNOWN, READERS, from_picture, is_numbered

__all__ = [
    "batches", "count_images", "decode", "encode", "from_picture", "is_numbered", "open_dataset", "to_picture",
    "to_unit",
]  # fmt: skip


def open_dataset(section):
    """The dataset of a `Dataset` section: len() images, [i] a uint8 tensor (C, H, W), .record what they are.

    Raises InputError when its files are missing, saying which go where.
    """
    images = READERS[section.dataset](section)
    if not len(images):
        raise InputError(f"Dataset.dataset {section.dataset}: there are no images in it", "Dataset.path")
    shape, wanted = tuple(images[0].shape), section.shape
    if shape != wanted:
        message = f"Dataset: {section.dataset} has images of {shape}, the experiment says {wanted}"
        raise InputError(message, "Dataset.image_size", "Dataset.channels", "Dataset.dataset")
    return images


def count_images(section):
    """The number of images of a `Dataset` section; nothing is downloaded. Raises InputError when files are missing."""
    known = KNOWN.get(section.dataset)
    return known[section.split] if known else len(open_dataset(section))


def missing(section):
    """Why a dataset cannot be read from the files that are here, "" where it can; nothing is downloaded."""
    try:
        with only_here("not looked for elsewhere"):
            open_dataset(section)
    except InputError as error:
        return str(error)
    return ""


def batches(images, size, ids=None):
    """(ids, uint8 images (n, C, H, W)) of `images` in order, decoded ahead by threads, two batches at most.

    ids: the range of those that are read; None: all. Raises InputError when one has another shape than the first.
    """
    shape, wanted = images[0].shape, range(len(images)) if ids is None else ids

    def stack(ids, loaded):
        loaded = list(loaded)
        for i, image in zip(ids, loaded, strict=True):
            if image.shape != shape:
                raise InputError(
                    f"{images.name(i)} is {tuple(image.shape)}, {images.name(0)} {tuple(shape)}; "
                    "all must be of one shape"
                )
        return ids, torch.stack(loaded)

    pending = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(wanted), size):
            ids = wanted[first : first + size]
            pending.append((ids, pool.map(images.__getitem__, ids)))
            if len(pending) > 2:
                yield stack(*pending.popleft())
        for ids, loaded in pending:
            yield stack(ids, loaded)


def encode(images, section):
    """uint8 images (n, C, H, W) → float32 as the network sees them, without noise or flips."""
    x = images.float() / 255
    if section.logit_transform:
        x = 1e-6 + (1 - 2e-6) * x
        return torch.log(x) - torch.log1p(-x)
    return 2 * x - 1 if section.rescaled else x


def to_unit(x, section):
    """What the network sees (n, C, H, W) → images in [0, 1]."""
    if section.logit_transform:
        return torch.sigmoid(x)
    return ((x + 1) / 2 if section.rescaled else x).clamp(0, 1)


def decode(x, section):
    """What the network sees (n, C, H, W) → uint8 images, rounded to the nearest level."""
    return (to_unit(x, section) * 255).round().to(torch.uint8)


def to_picture(image):
    """uint8 (C, H, W), C 1 or 3 → Pillow's image. torchvision's converter would take two seconds to import."""
    array = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(array[:, :, 0] if len(image) == 1 else array)
