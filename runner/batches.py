"""The batches of a training run: images, times and noise, prepared in a thread while the network computes.

What is random in step n follows from the seed, n and the place in the batch. Each process draws the part of the batch
that it computes, a restart needs no stored random state, and the number of processes does not change what is drawn.
"""

import contextlib
import itertools
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from pndm.config.errors import InputError
from pndm.dataset import encode
from pndm.runner.random import generator

GRACE = 60  # seconds that a process which reads images goes on for after it was told to stop


class Batch(NamedTuple):
    """One process's part of a batch: what a step of training needs."""

    x0: torch.Tensor  # (n, C, H, W) float32, images as the network sees them
    eps: torch.Tensor  # (n, C, H, W) float32, standard normal
    t: torch.Tensor  # (n,) int64, training steps 0 … T−1


def steps_of(experiment, count):
    """The number of steps of a training on `count` images. Raises InputError if there is not one batch of them."""
    size = experiment.Dataset.batch_size
    if count < size:
        raise InputError(f"batch_size {size} is above the {count} images", "Dataset.batch_size")
    return experiment.Train.steps or experiment.Train.epoch * (count // size)


def batches(images, section, seed, times, places, device, first, last):
    """The `Batch`es of steps `first` … `last`−1, on `device`. Raises InputError where an image cannot be read.

    images: a dataset; section: the `Dataset` section; times: T, the number of training steps of the schedule;
    places: a range, this process's part of every batch.
    """
    order = itertools.islice(image_order(len(images), section.batch_size, seed), first, last)
    mine = (numbers[places.start : places.stop] for numbers in order)
    readers = {"num_workers": section.num_workers, "worker_init_fn": undisturbed}
    loader = DataLoader(_Stacked(images), batch_size=None, sampler=mine, **readers)
    cuda = device.type == "cuda"

    def prepare(step, found):
        if isinstance(found, InputError):
            raise found
        batch = draw(found, section, seed, step, places, times)
        return Batch(*((part.pin_memory() if cuda else part).to(device, non_blocking=cuda) for part in batch))

    def prepared():
        found = iter(loader)
        try:
            for step in range(first, last):
                yield prepare(step, next(found))
        finally:
            del found  # and with it the processes that read images, whoever still holds an error's traceback

    return ahead(prepared())


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
    """Yield the items of a generator; a thread prepares the next one while the last is used."""
    with contextlib.closing(items), ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


def _normal(generators, shape):
    return np.stack([rng.standard_normal(tuple(shape), np.float32) for rng in generators])


def undisturbed(number):
    """In a process that reads images: when told to stop, go on for a while. The run finishes its step, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # whose default action is to end the process
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


class _Stacked:
    """[numbers] the images as one uint8 tensor (n, C, H, W), or an InputError: a worker would add its traceback."""

    def __init__(self, images):
        self.images = images

    def __getitem__(self, numbers):
        try:
            return torch.stack([self.images[i] for i in numbers])
        except InputError as error:
            return error
