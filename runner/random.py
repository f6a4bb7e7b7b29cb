"""Random numbers by name: what is drawn depends on a seed, a stream and an index, never on what was drawn before.

Philox is a counter-based generator (Salmon et al. 2011): seed and index are its key, the stream is the upper
part of its counter, so that no two names share numbers and nothing needs to be stored to continue.
"""

import numpy as np

STREAMS = {"sampling": 0, "order": 1, "batch": 2, "dropout": 3}


def generator(seed, stream, index):
    """NumPy's Generator named (seed, stream, index); seed and index 0 … 2⁶⁴−1, stream a name in `STREAMS`."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, STREAMS[stream]]))


def noise(seed, ids, shape):
    """The starting noise of images `ids`, float32 (len(ids), *shape): image i's is its own, whoever is beside it."""
    return np.stack([generator(seed, "sampling", i).standard_normal(shape, np.float32) for i in ids])
