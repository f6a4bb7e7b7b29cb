"""How this process computes: its threads, its memory, its rounding, its compiler. All process-wide state is set here.

The command line calls `start` once; a Python program that wants the same speed calls it too. Nothing here is set by
importing it.
"""

import contextlib
import ctypes
import functools
import os
import shutil
import threading
import warnings
from pathlib import Path

import torch

from pndm.config.errors import InputError, first_line
from pndm.model.machine import physical_cores


def start():
    """Take the threads that `threads` says, and keep memory."""
    torch.set_num_threads(threads())
    keep_memory()


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


_ONE = threading.RLock()


@contextlib.contextmanager
def tf32(allowed):
    """While inside, NVIDIA GPUs may round float32 convolutions and matrix products to TF32, or may not.

    It is a setting of the process, so one thread is inside at a time.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    new = (cudnn.conv, cudnn.rnn, matmul) if hasattr(cudnn, "conv") else ()  # of newer versions
    with _ONE:
        before = [*_values("allow_tf32", cudnn, matmul), *_values("fp32_precision", *new)]
        medium = _readable(torch.get_float32_matmul_precision) == "medium"  # which allow_tf32 does not tell
        try:
            cudnn.allow_tf32 = matmul.allow_tf32 = allowed
            for place in new:
                place.fp32_precision = "tf32" if allowed else "ieee"
            yield
        finally:
            for place, name, value in before:
                if name == "fp32_precision":
                    place.fp32_precision = "none"  # then it is that of the settings above it, which may be this value
                    if place.fp32_precision == value:
                        continue
                setattr(place, name, value)
            if medium:
                torch.set_float32_matmul_precision("medium")


def _values(name, *places):
    """(place, name, value) of a setting wherever it can be read."""
    for place in places:
        if (value := _readable(functools.partial(getattr, place, name))) is not None:
            yield place, name, value


def _readable(setting):
    """A setting's value; None where PyTorch refuses: the old ones after the program has set the new ones otherwise."""
    try:
        return setting()
    except RuntimeError:
        return None


def compiled(network, device, key, mode=None):
    """`torch.compile` of a network for the one shape of x that a run has; mode: as of `torch.compile`.

    Raises InputError, about the value `key`, where there is no compiler.
    """
    # Triton compiles the launchers of its kernels in C; kernels for CPUs are compiled in C++.
    language, variable, usual = ("C", "CC", "gcc clang") if device.type == "cuda" else ("C++", "CXX", "g++")
    names = os.environ.get(variable, usual).split()
    if not any(map(shutil.which, names)):
        raise InputError(f"compile needs a {language} compiler, and there is no {' or '.join(names)}", key)
    if "ATEN_CPU_CAPABILITY" in os.environ:
        from torch._inductor import config

        config.fx_graph_cache = False  # kept code is found by a key that does not tell instruction sets apart
    return torch.compile(network, dynamic=False, mode=mode)


def deterministic():
    """Whether this PyTorch can compile without choosing kernels by timing, so that ranks come to the same."""
    from torch._inductor import config

    return hasattr(config, "deterministic")


def frozen(network, device, key):
    """`compiled` for inference: on a GPU as a CUDA graph, on a CPU with weights that are part of what is compiled.

    They are laid out once as the convolutions want them ("freezing"). That is a setting of the process: as an option
    of `torch.compile` it is read too late. PyTorch 2.4 fails at it, 2.15 does not.

    Every rank compiles alone, and must come to the same kernels, so that an image is the same by each: choosing them
    by timing is turned off, where PyTorch can (`deterministic`).
    """
    from torch._inductor import config

    if deterministic():
        config.deterministic = True
    config.freezing = device.type == "cpu" and torch.__version__ >= "2.15"
    return compiled(network, device, key, "reduce-overhead" if device.type == "cuda" else None)


@torch.inference_mode()
def capture(function, *inputs):
    """`function` of tensors (inputs) as a CUDA graph: takes tensors like them; the next call overwrites its result."""
    inputs, graph = [value.clone() for value in inputs], torch.cuda.CUDAGraph()
    with torch.cuda.device_of(inputs[0]):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is done once: kernels chosen, libraries set up
            for _ in range(2):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        # Other threads, which copy features and noise, may go on meanwhile.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):  # a stream of this GPU
            result = function(*inputs)

    def replay(*values):
        for place, value in zip(inputs, values, strict=True):
            place.copy_(value)
        graph.replay()
        return result

    return replay


class Graphs:
    """A network as a CUDA graph for each of the first few shapes that it is called with, of at most `largest` pixels.

    A call of few pixels is some 600 kernels that take a GPU less time than a CPU needs to launch them. The result is
    overwritten by the next call of that shape. An adaptive method asks about ever other numbers of images: after
    `most` shapes the network is called as it is, and so it is with labels. capture: see `capture`.
    """

    def __init__(self, network, capture=capture, largest=128 * 32**2, most=4):
        self.network, self.capture, self.largest, self.most = network, capture, largest, most
        self.held = {}

    def __call__(self, x, t, *labels):
        if labels or (torch.is_grad_enabled() and x.requires_grad):
            return self.network(x, t, *labels)
        with torch.inference_mode():
            return self._replayed(x, t)

    def _replayed(self, x, t):
        shapes = x.shape, t.shape
        pixels = len(x) * x.shape[2:].numel()
        if shapes not in self.held and pixels <= self.largest and len(self.held) < self.most:
            try:
                self.held[shapes] = self.capture(self.network, x, t)
            except RuntimeError as error:  # slower, not wrong
                warnings.warn(f"no CUDA graph of the network: {first_line(error)}", stacklevel=2)
                self.largest = 0
        return self.held.get(shapes, self.network)(x, t)
