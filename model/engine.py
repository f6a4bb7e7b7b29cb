"""A network made fast for many calls: its precision, its layout in memory, compiled or not."""

import contextlib
import ctypes
import os
import resource
import shutil
import sys
from pathlib import Path

import torch

from pndm.config.errors import InputError
from pndm.config.schema import PRECISIONS


def resolve(precision, device, smooth=True):
    """The precision that `auto` stands for: the fastest one that is not worse within its error (docs/speed.md).

    That is bf16 where the device has instructions for it, and else fp32. Without `smooth`, for methods that control
    an error far below bf16's rounding, it is fp32. Raises InputError on what the device cannot do.
    """
    if precision not in PRECISIONS:
        raise InputError(f"--precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"--precision: tf32 needs an NVIDIA GPU; {device.type} can do fp32 and bf16")
    if precision != "auto":
        return precision
    return "bf16" if smooth and has_bfloat16(device) else "fp32"


def has_bfloat16(device):
    """Whether matrix products in bfloat16 are faster than in float32 there."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpus = Path("/proc/cpuinfo")
    return device.type == "cpu" and cpus.exists() and "amx_bf16" in cpus.read_text()


@contextlib.contextmanager
def tf32(allowed):
    """While inside, float32 convolutions and matrix products on NVIDIA GPUs may be rounded to TF32, or may not."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


class Engine:
    """network(x, t) → ε, as `load_model` gives it, run in `precision` (one that `resolve` returned) on `device`.

    x, t and ε are float32 whatever the precision is. The network is taken over: its weights are converted in place.
    compile: by torch.compile for the one shape of x that a run has, on GPUs as a CUDA graph, on CPUs with the weights
    part of what is compiled, for this process alone. Raises InputError where there is no compiler.
    """

    def __init__(self, network, device, precision="fp32", compile=False):
        if device.type == "cpu":
            _keep_memory()
        self.network = network.to(device, memory_format=torch.channels_last)
        self.network.set_inner(torch.bfloat16 if precision == "bf16" else torch.float32)
        self.precision, self.compiled, self.plain = precision, compile, self.network
        if compile:
            compiler = os.environ.get("CXX", "g++")
            if not shutil.which(compiler):
                raise InputError(f"--compile: needs a C++ compiler, and there is no {compiler}")
            from torch._inductor import config as inductor

            # CUDA graphs on GPUs; on CPUs weights laid out once as the convolutions want them, which is to be set
            # here, since an option of torch.compile is read too late for it. PyTorch 2.4 fails at it, 2.15 does not.
            inductor.freezing = device.type == "cpu" and torch.__version__ >= "2.15"
            mode = "reduce-overhead" if device.type == "cuda" else None
            self.network = torch.compile(self.network, dynamic=False, mode=mode)

    def to(self, device):
        """Move the network to a device."""
        self.network.to(device)

    def __call__(self, x, t):
        with tf32(self.precision == "tf32"):
            eps = self.network(x, t)
        # A CUDA graph writes its result to the same place every time, and methods keep ε's.
        return eps.clone() if self.compiled else eps


def _keep_memory():
    """Have the C library keep memory that is freed, where it is glibc: a tenth of the time of a call on a CPU.

    Else it gives large blocks back to the system, which clears them again for the next activation of that size.
    """
    keep, trim, size = -3, -1, 2**30  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(keep, size)
        libc.mallopt(trim, size)


@torch.inference_mode()
def largest_batch(network, shape, device, most=None):
    """The most images (a power of two) of `shape` (C, H, W) that network(x, t) takes at once in the memory there is.

    Found by trying, doubling the batch while what the last one took would fit twice into half of the free memory;
    at most `most`, by default 512 on a GPU and 64 on a CPU, beyond which nothing is gained.
    """
    most = most or (64 if device.type == "cpu" else 512)
    free, before = _free(device) / 2, peak(device)
    size = 1
    while True:
        network(torch.zeros(size, *shape, device=device), torch.zeros(1, device=device).expand(size))
        if 2 * size > most or 2 * (peak(device) - before) > free:
            return size
        size *= 2


def _free(device):
    """Bytes of memory that are free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def peak(device):
    """Bytes that this process has held at most (on a GPU: there)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
