"""A network made fast for many calls: its precision, its layout in memory, compiled or not."""

import functools
import os
import sys
import time

import torch

from pndm.config.errors import InputError
from pndm.config.schema import PRECISIONS
from pndm.model.backend import Graphs, frozen, tf32
from pndm.model.blocks import ResBlock
from pndm.model.machine import has_bfloat16, has_tf32
from pndm.model.settings import Settings


def resolve(precision, device, smooth=True, key="Sample.precision"):
    """The precision that "auto" stands for: the fastest one that is not worse within its error (docs/speed.md).

    That is bf16 where the device has instructions for it, else fp32. Without `smooth` it is fp32, for methods that
    control an error far below the rounding of bf16. Raises InputError, about `key`, for what the device cannot do.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}", key)
    if precision == "tf32" and not has_tf32(device):
        message = f"precision tf32 needs an NVIDIA GPU since Ampere (2020); {device.type} can do fp32 and bf16"
        raise InputError(message, key, "device")
    if precision != "auto":
        return precision
    fast = smooth and has_bfloat16(device)
    if fast is None:
        fast = faster_for_all()
    return "bf16" if fast else "fp32"


@functools.cache
def faster_for_all():
    """`faster_by_timing` of the first of torchrun's processes: what timing decides must be the same in all.

    All of them must make the first call; later ones ask nobody.
    """
    values = [faster_by_timing()]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values)
    return values[0]


@functools.cache
@torch.inference_mode()
def faster_by_timing():
    """Whether a residual block is faster in bfloat16 than in float32 on this CPU, by a fifth at least.

    It is timed once a process, on one thread, for at most 0.3 seconds, or a call of each where that takes longer.
    """
    end = time.perf_counter() + 0.3
    threads, times = torch.get_num_threads(), {torch.float32: [], torch.bfloat16: []}
    blocks = {dtype: ResBlock(128, 128, Settings()).eval().to(dtype) for dtype in times}
    x, temb = torch.zeros(2, 128, 16, 16).contiguous(memory_format=torch.channels_last), torch.zeros(1, 512)
    torch.set_num_threads(1)
    try:
        while time.perf_counter() < end or not times[torch.bfloat16]:
            for dtype, seconds in times.items():
                begun = time.perf_counter()
                blocks[dtype](x.to(dtype), temb.to(dtype))
                seconds.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return 1.2 * min(times[torch.bfloat16]) < min(times[torch.float32])


class Engine:
    """network(x, t) → ε, as `load_model` gives it, run in `precision` (one that `resolve` returned) on `device`.

    x, t and ε are float32 in every precision; t has shape (n,), or (1,) for images that share one time. `labels` is
    passed on, of networks that know classes. The engine takes the network over: its weights are converted in place.
    compile: by torch.compile (`backend.frozen`), for this process alone. Else calls of few images are CUDA graphs on a
    GPU, unless they have labels. Raises InputError where there is no compiler.

    bf16 on a GPU: the first and the last convolution, which see x and ε, and the time embedding are in TF32. That adds
    at most 7 % to the error of bf16 (docs/speed.md); bf16 there as well would double it.
    """

    broadcasts_time = True

    def __init__(self, network, device, precision="fp32", compile=False):
        self.network = self.plain = network.to(device, memory_format=torch.channels_last)
        self.network.set_inner(torch.bfloat16 if precision == "bf16" else torch.float32)
        self.precision, self.compiled = precision, compile
        self.ready = set()
        if compile:
            self.network = frozen(self.network, device, "Sample.compile")
        elif device.type == "cuda":
            self.network = Graphs(self.network)

    def to(self, device):
        """Move the network to a device."""
        self.plain.to(device)
        if not self.compiled:
            self.network = Graphs(self.plain) if torch.device(device).type == "cuda" else self.plain

    @torch.inference_mode()
    def prepare(self, shape, device, conditioned=None):
        """Compile, if that is asked for, for images of `shape` (n, C, H, W) at one time: before a clock starts.

        conditioned: network(x, t) that calls this one, with classes.
        """
        kind = shape, type(conditioned)
        if self.compiled and kind not in self.ready:
            self.ready.add(kind)
            for _ in range(2):  # the second call records the CUDA graph
                (conditioned or self)(torch.zeros(shape, device=device), torch.zeros(1, device=device).expand(1))

    def __call__(self, x, t, labels=None):
        with tf32(self.precision in ("tf32", "bf16")):
            eps = self.network(x, t) if labels is None else self.network(x, t, labels)
            # A CUDA graph has one place for x and one for its result, and methods keep ε's.
            return eps if self.network is self.plain else eps.clone()


@torch.inference_mode()
def largest_batch(network, shape, device):
    """The largest batch (a power of two) of images of `shape` (C, H, W) that the network takes in the free memory.

    network(x, t): called with t of shape (1,). The batch is doubled until twice the memory of the last call would
    exceed half of the free memory, or until 512 on a GPU and 64 on a CPU, where nothing more is gained.
    """
    most = 64 if device.type == "cpu" else 512
    free, before = free_memory(device) / 2, peak(device)
    size = 1
    while True:
        network(torch.zeros(size, *shape, device=device), torch.zeros(1, device=device))
        if 2 * size > most or 2 * (peak(device) - before) > free:
            return size
        size *= 2


def free_memory(device):
    """Bytes of memory that are free on a device."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).mem_get_info(device)[0]
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def peak(device):
    """The most bytes that this process has held so far: on a GPU those of the GPU, else those of the process."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).max_memory_reserved(device)
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
