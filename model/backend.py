"""How this process computes: its threads, its memory, its rounding, its compiler. All process-wide state is set here.

The command line calls `start` once; a Python program that wants the same speed calls it too. Nothing here is set by
importing it.
"""

import contextlib
import ctypes
import os
from pathlib import Path

import torch

from pndm.model.machine import physical_cores


def start():
    """Take the threads that `threads` says, and keep memory. Returns the number of threads, for the record."""
    torch.set_num_threads(threads())
    keep_memory()
    return torch.get_num_threads()


def threads():
    """Threads for this process: OMP_NUM_THREADS, else its share of the physical cores that are free.

    The processes that torchrun started on this machine (LOCAL_WORLD_SIZE) share the cores. At least 1.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted.isdecimal() and int(wanted) > 0 and not _set_by_torchrun():
        return int(wanted)
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    processes = int(processes) if processes.isdecimal() else 1
    return max(1, physical_cores() // max(1, processes))


def _set_by_torchrun():
    """Whether it was torchrun that set OMP_NUM_THREADS, which it does (to 1) where the user did not."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:  # the environment that torchrun itself was started with
        given = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return not any(variable.startswith(b"OMP_NUM_THREADS=") for variable in given)


def keep_memory():
    """Let the C library keep freed memory, where it is glibc.

    By default it returns large blocks to the system, and the system clears them for the next activation of that size:
    a tenth of the time of a network call on a CPU.
    """
    keep, trim, size = -3, -1, 2**30  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(keep, size)
        libc.mallopt(trim, size)


@contextlib.contextmanager
def tf32(allowed):
    """While inside, NVIDIA GPUs may round float32 convolutions and matrix products to TF32, or may not."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def compiled(network, device):
    """`torch.compile` of a network for the one shape of x that a run has; on a GPU as a CUDA graph.

    On a CPU the weights become part of what is compiled ("freezing"), laid out once as the convolutions want them.
    That is a setting of the process: as an option of `torch.compile` it is read too late. PyTorch 2.4 fails at it,
    2.15 does not.
    """
    from torch._inductor import config

    config.freezing = device.type == "cpu" and torch.__version__ >= "2.15"
    mode = "reduce-overhead" if device.type == "cuda" else None
    return torch.compile(network, dynamic=False, mode=mode)
