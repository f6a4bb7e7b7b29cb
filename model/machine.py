"""Facts about this machine: the physical cores that are free to this process, and whether bfloat16 is fast."""

import os
import platform
from pathlib import Path

import torch

from pndm.config.errors import InputError

# Instructions for products of bfloat16 matrices: the names of `torch.cpu.get_capabilities`, those of /proc/cpuinfo.
BFLOAT16 = {"amx_bf16", "avx512_bf16", "sve_bf16", "svebf16", "bf16"}
# Values of ONEDNN_MAX_CPU_ISA under which oneDNN emulates bfloat16.
WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
ROCM_WITH_BFLOAT16 = ("gfx90a", "gfx94", "gfx95")  # MI200, MI300, MI350


def device_of(name: str | torch.device) -> torch.device:
    """The device of that name. Raises InputError (a ValueError) if PyTorch knows none, or cannot use it here."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"device {name!r} is not one of PyTorch's, such as cpu, cuda, cuda:1, mps") from None
    if device.type == "cpu":
        return device
    module = torch.backends.mps if device.type == "mps" else getattr(torch, device.type, None)
    if module is None or not module.is_available():
        raise InputError(f"device {name!r} is not there: PyTorch finds no {device.type} device on this machine")
    if device.index and device.index >= (count := module.device_count() if hasattr(module, "device_count") else 1):
        raise InputError(f"device {name!r} is not there: PyTorch finds {count} of this kind, numbered from 0")
    return device


def has_bfloat16(device):
    """Whether convolutions in bfloat16 are faster than in float32 there: True, False, or None where only timing tells.

    oneDNN's own "supported" is no answer: it is true where bfloat16 is emulated.
    """
    if device.type == "cpu":
        return _cpu_has_bfloat16()
    if device.type != "cuda":
        return False  # mps and xpu: not measured
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.startswith(ROCM_WITH_BFLOAT16)
    return has_tf32(device)  # NVIDIA's GPUs have both since Ampere


def has_tf32(device):
    """Whether float32 convolutions can be rounded to TF32 there: on NVIDIA's GPUs since Ampere."""
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 0)


def _cpu_has_bfloat16():
    features = cpu_features()
    known = platform.machine().lower() in ("x86_64", "amd64", "aarch64", "arm64")
    if not (known and features and torch.backends.mkldnn.is_available()):
        return None
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    return cap.upper() not in WITHOUT_BFLOAT16 and not features.isdisjoint(BFLOAT16)


def cpu_features():
    """Names of the processor's instruction sets, as PyTorch and Linux call them; empty where neither says any."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, there in torch.cpu.get_capabilities().items() if there is True}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(flags, "").split())


def physical_cores(root="/"):
    """Physical cores free to this process, by its affinity, its container's quota and SMT; at least 1.

    root: where /proc and /sys are (for tests).
    """
    root = Path(root)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({_siblings(root, cpu) for cpu in cpus})
    if hasattr(os, "process_cpu_count"):  # it knows of `python -X cpu_count`
        cores = min(cores, os.process_cpu_count() or 1)
    return max(1, min([cores, *_quotas(root)]))


def _siblings(root, cpu):
    """The hardware threads of the core of a logical processor, as Linux writes them; itself where that is not known."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quotas(root):
    """Whole processors that each control group of this process may use, in versions 1 and 2 of control groups."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folder = top / place.lstrip("/")
        for group in (folder, *folder.parents):  # a container sees its own group as the top
            if quota := _quota(group):
                yield int(quota)
            if group == top:
                break


def _quota(group):
    """Processors (a fraction) that a control group may use; None without a limit."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / file).read_text() for file in files).split()
            return int(quota) / int(period) if int(quota) > 0 else None
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None
