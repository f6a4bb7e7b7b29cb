"""Random numbers by name: what is drawn depends on a seed, a stream and an index, never on what was drawn before.

Philox is a counter-based generator (Salmon et al. 2011): seed and index are its key, stream and step the upper
part of its counter, so that no two names share numbers and nothing needs to be stored to continue.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

STREAMS = {
    "sampling": 0,
    "order": 1,
    "batch": 2,
    "dropout": 3,
    "step": 4,
    "image": 5,
    "search": 6,
    "label": 7,
}


def generator(seed, stream, index, step=0):
    """NumPy's Generator of that name; seed, index and step 0 … 2⁶⁴−1, stream a name in `STREAMS`."""
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, index], np.uint64), counter=[0, 0, step, STREAMS[stream]])
    )


def noise(seed, ids, shape, stream="sampling", step=0):
    """The noise of images `ids`, float32 (len(ids), *shape): image i's is its own, whoever is beside it.

    stream: "sampling", what images start from; "step", what a stochastic method draws in its step 0, 1, …; "search",
    what a sampler is searched on (step 0), and what is held out (step 1).
    """
    return np.stack([generator(seed, stream, i, step).standard_normal(shape, np.float32) for i in ids])


class Ahead:
    """noise(k): `noise` of the stream "step" for step k = 0, 1, …, below `steps` where that is known.

    Threads draw that of the next step while the network computes. The numbers are those of `noise`. The threads end
    when nothing refers to it.
    """

    def __init__(self, seed, ids, shape, steps, threads):
        self.seed, self.shape, self.steps = seed, shape, np.inf if steps is None else steps
        self.pool, self.begun = ThreadPoolExecutor(threads), {}
        parts = (ids[len(ids) * i // threads : len(ids) * (i + 1) // threads] for i in range(threads))
        self.parts = [part for part in parts if len(part)]

    def __call__(self, step):
        for k in (step, step + 1):
            if k not in self.begun and k < self.steps:
                self.begun[k] = [self.pool.submit(noise, self.seed, p, self.shape, "step", k) for p in self.parts]
        return np.concatenate([part.result() for part in self.begun.pop(step)])
