"""Platform-independent weights: every value follows from the tensor's name and shape alone."""

import zlib

import numpy as np


def uniform(name: str, count: int) -> np.ndarray:
    """`count` float64 values in [-1, 1): SplitMix64 of (CRC-32 of `name`) << 32 | index."""
    z = (np.uint64(zlib.crc32(name.encode())) << np.uint64(32)) | np.arange(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * (2.0 / 2**53) - 1.0


def fill(name: str, shape) -> np.ndarray:
    """float32 array for parameter `name`: matrices and kernels at sqrt(3 / fan_in), vectors 0.1
    (a vector whose name ends in 'weight', a norm's scale, is centred at 1)."""
    count = int(np.prod(shape)) if len(shape) else 1
    u = uniform(name, count).reshape(shape)
    if len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        return (u * np.sqrt(3.0 / fan_in)).astype(np.float32)
    return ((1.0 if name.endswith("weight") else 0.0) + 0.1 * u).astype(np.float32)
