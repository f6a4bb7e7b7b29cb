"""Operators for inference on a CPU, where PyTorch's own are slow."""

import torch
import torch.nn.functional as F


def group_norm(x, weight, bias, groups, eps):
    """`F.group_norm` of x (n, C, H, W); on a CPU, without gradients, by the fastest way there is."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return F.group_norm(x, groups, weight, bias, eps)
    return (_opaque if torch.compiler.is_compiling() else _on_cpu)(x, weight, bias, groups, eps)


def _on_cpu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    n, c, height, width = x.shape
    small = height * width < 1024 and c // groups * x.element_size() < 32
    if x.is_contiguous() or not small:
        return F.group_norm(x, groups, weight, bias, eps)
    # PyTorch's own kernel is slow for small channels-last images with few channels a group.
    values = x.permute(0, 2, 3, 1).reshape(n, height * width, c).to(torch.float32, copy=True)
    sums = values.sum(1), values.square_().sum(1)
    mean, square = (v.view(n, groups, -1).mean(2, keepdim=True) / (height * width) for v in sums)
    scale = weight.view(groups, -1) * ((square - mean**2).clamp_(min=0) + eps).rsqrt()
    shift = bias.view(groups, -1) - mean * scale
    scale, shift = (v.reshape(n, c, 1, 1).to(x.dtype) for v in (scale, shift))
    return torch.addcmul(shift, x, scale)


# A custom operator is left as it is by torch.compile, whose own group norm is slower on a CPU.
_opaque = torch.library.custom_op("pndm::group_norm", _on_cpu, mutates_args=())
_opaque.register_fake(lambda x, weight, bias, groups, eps: torch.empty_like(x))


def silu(x):
    """SiLU of a tensor that nobody else needs: in place unless gradients are on."""
    return F.silu(x, inplace=not torch.is_grad_enabled())
