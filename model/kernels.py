"""Operators for inference where PyTorch's own are slow."""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pndm.config.errors import first_line
from pndm.model.machine import cpu_features

# A processor with AMX, and PyTorch held to older instructions by ATEN_CPU_CAPABILITY.
HELD_BACK = "amx_bf16" in cpu_features() and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def group_norm(x, weight, bias, groups, eps, activate=False):
    """`F.group_norm` of x (n, C, H, W), then SiLU if `activate`; without gradients, by the fastest way there is."""
    compiling = torch.compiler.is_compiling()
    by_pytorch = x.device.type != "cpu" and (compiling or x.dtype == torch.float64)  # Triton's kernel sums in float32
    if torch.is_grad_enabled() or by_pytorch:
        norm = _plain
    elif compiling:
        norm = _plain if x.dtype == torch.float64 else _fusible
    elif not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last) and (ours := fused(x.device)):
        return ours(x, weight, bias, groups, eps, activate)
    else:
        norm = _on_cpu if x.device.type == "cpu" else _plain
    return norm(x, weight, bias, groups, eps, activate)


@functools.cache
def fused(device):
    """`fused.group_norm` where it works and is right, which is tried once; else None: Triton needs a C compiler."""
    if device.type != "cuda":
        return None
    try:
        from pndm.model.fused import group_norm as ours

        x = torch.linspace(-300, 300, 2 * 64 * 64, device=device).sin()
        x = x.view(2, 64, 8, 8).to(memory_format=torch.channels_last)
        ones = torch.ones(64, device=device)
        right = torch.allclose(ours(x, ones, ones, 16, 1e-6, True), _plain(x, ones, ones, 16, 1e-6, True), atol=1e-4)
    except Exception as error:  # a missing compiler and a GPU that Triton does not know raise different errors
        why = first_line(error)
    else:
        if right:
            return ours
        why = "its result is wrong here"
    warnings.warn(f"group norm is PyTorch's own, which is slower; Triton's kernel: {why}", stacklevel=2)
    return None


def _plain(x, weight, bias, groups, eps, activate):
    x = F.group_norm(x, groups, weight, bias, eps)
    return silu(x) if activate else x


def _on_cpu(x, weight, bias, groups, eps, activate):
    channels, pixels = x.shape[1] // groups, x.shape[2] * x.shape[3]
    if x.dtype != torch.bfloat16 or x.is_contiguous() or pixels >= 1024 or channels >= 16:
        return _plain(x, weight, bias, groups, eps, activate)
    # PyTorch's kernel for channels last is slow for small images with less than 32 bytes of channels a group.
    if channels >= 8:
        return _plain(x.float(), weight.float(), bias.float(), groups, eps, activate).to(x.dtype)
    return _plain(x.contiguous(), weight, bias, groups, eps, activate).contiguous(memory_format=torch.channels_last)


def _fusible(x, weight, bias, groups, eps, activate):
    """Group norm as torch.compile makes it fast on CPUs: sums by channel, then one pass over x."""
    wide = x.float()
    mean, square = (v.mean((2, 3)).unflatten(1, (groups, -1)) for v in (wide, wide.square()))
    mean, square = (v.mean(2, keepdim=True) for v in (mean, square))
    scale = weight.float().view(groups, -1) * ((square - mean.square()).clamp(min=0) + eps).rsqrt()
    shift = bias.float().view(groups, -1) - mean * scale
    # Inductor writes to memory what is taken by strides. It would else compute it anew for each pixel.
    scale, shift = (v.flatten(1).as_strided((*x.shape[:2], 1, 1), (x.shape[1], 1, 1, 1)) for v in (scale, shift))
    y = wide * scale + shift
    return (F.silu(y) if activate else y).to(x.dtype)


def attention(q, k, v):
    """`F.scaled_dot_product_attention`; not by the fused kernel where PyTorch 2.15 raises in it, in bfloat16."""
    if HELD_BACK and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def silu(x):
    """SiLU of a tensor that nobody else needs: in place unless gradients are on."""
    return F.silu(x, inplace=not torch.is_grad_enabled())
