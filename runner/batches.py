"""The batches of a training run: images, times and noise, prepared in a thread while the network computes.

What is random in step n follows from the seed, n and the place in the batch. Each process draws the part of the batch
that it computes, a restart needs no stored random state, and the number of processes does not change what is drawn.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from pndm.config.errors import InputError
from pndm.dataset import encode
from pndm.runner.random import generator


class Batch(NamedTuple):
    """One process's part of a batch: what a step of training needs."""

    x0: torch.Tensor  # (n, C, H, W) float32, images as the network sees them
    eps: torch.Tensor  # (n, C, H, W) float32, standard normal
    t: torch.Tensor  # (n,) int64, training steps 0 … T−1


class Batches:
    """Iterable of the `Batch`es of steps `first` … `last`−1, on `device`.

    images: a dataset; section: the `Dataset` section; times: T, the number of training steps of the schedule;
    part: (start, stop), this process's places in every batch. Raises InputError where an image cannot be read.
    """

    def __init__(self, images, section, seed, times, part, device, first, last):
        self.section, self.seed, self.times, self.device = section, seed, times, device
        self.places, self.first = range(*part), first
        order = itertools.islice(image_order(len(images), section.batch_size, seed), first, last)
        mine = (batch[slice(*part)] for batch in order)
        self.loader = DataLoader(
            _Reported(images), batch_sampler=mine, num_workers=section.num_workers, collate_fn=_stack
        )

    def __iter__(self):
        return ahead(self._prepare(step, images) for step, images in enumerate(self.loader, self.first))

    def _prepare(self, step, images):
        if isinstance(images, InputError):
            raise images
        batch = draw(images, self.section, self.seed, step, self.places, self.times)
        if self.device.type != "cuda":
            return Batch(*(tensor.to(self.device) for tensor in batch))
        return Batch(*(tensor.pin_memory().to(self.device, non_blocking=True) for tensor in batch))


def draw(images, section, seed, step, places, times):
    """The `Batch` of uint8 images (n, C, H, W) at `places` (n numbers) of the batch of step `step`, on the CPU.

    Times are antithetic, as in the released code: half of the batch's are drawn, the other half are T−1−t.
    """
    n = section.batch_size
    half = generator(seed, "batch", step).integers(0, times, n // 2 + 1)
    t = np.concatenate([half, times - 1 - half])[:n][list(places)]
    generators = [generator(seed, "image", place, step) for place in places]
    x0 = augment(images, section, generators)
    eps = torch.from_numpy(_normal(generators, x0.shape[1:]))
    return Batch(x0, eps, torch.from_numpy(t))


def augment(images, section, generators):
    """uint8 images (n, C, H, W) → float32 as the network sees them, flipped and dequantized as the section says.

    generators: a NumPy Generator for each image.
    """
    shape = images.shape[1:]
    if section.random_flip:
        flip = torch.tensor([rng.random() < 0.5 for rng in generators])
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
    levels = images.float()
    if section.uniform_dequantization:
        uniform = np.stack([rng.random(shape, np.float32) for rng in generators])
        levels = (levels + torch.from_numpy(uniform)) * (255 / 256)
    if section.gaussian_dequantization:
        levels = levels + 2.55 * torch.from_numpy(_normal(generators, shape))
    return encode(levels, section)


def image_order(count, batch_size, seed):
    """Batches of image numbers, epoch after epoch without end; those left over at the end of an epoch are skipped."""
    for epoch in itertools.count():
        order = generator(seed, "order", epoch).permutation(count)
        for first in range(0, count - batch_size + 1, batch_size):
            yield order[first : first + batch_size].tolist()


def ahead(items):
    """Yield the items of an iterator; a thread prepares the next one while the last is used."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


def _normal(generators, shape):
    return np.stack([rng.standard_normal(tuple(shape), np.float32) for rng in generators])


class _Reported:
    """A dataset whose items may be an InputError: raised in a worker process, it would arrive with a traceback."""

    def __init__(self, images):
        self.images = images

    def __getitem__(self, i):
        try:
            return self.images[i]
        except InputError as error:
            return error


def _stack(images):
    """A uint8 tensor (n, C, H, W), or the first InputError among the images."""
    return next((image for image in images if isinstance(image, InputError)), None) or torch.stack(images)
