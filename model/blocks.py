"""The parts of the UNet, each with the variations that the four published networks need."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def sinusoidal_embedding(t, channels, cosine_first=False, shift=1):
    """Embed times t (n,) as (n, channels) float32: sin and cos of t · 10000^(−i/(half−shift)), i < half.

    In float32 whatever the network computes in, since that is the function the published networks learned.
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    phase = t.float()[:, None] * torch.exp(-math.log(10000) / (half - shift) * index)
    pair = (phase.cos(), phase.sin()) if cosine_first else (phase.sin(), phase.cos())
    return F.pad(torch.cat(pair, dim=1), (0, channels % 2))


class GroupNorm(nn.GroupNorm):
    """`groups` groups, 32 as a rule; `narrow`: of four channels each, 32 groups at most."""

    def __init__(self, channels, eps, narrow=False, groups=32):
        super().__init__(min(channels // 4, 32) if narrow else groups, channels, eps=eps)

    def forward(self, x):  # (n, C, H, W) → the same
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(x)
        norm = opaque_group_norm if torch.compiler.is_compiling() else group_norm
        return norm(x, self.weight, self.bias, self.num_groups, self.eps)


def group_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
) -> torch.Tensor:  # on a CPU, without gradients
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


# torch.compile's own code for it is slower on a CPU.
opaque_group_norm = torch.library.custom_op("pndm::group_norm", group_norm, mutates_args=())
opaque_group_norm.register_fake(lambda x, weight, bias, groups, eps: torch.empty_like(x))


def silu(x):
    """SiLU of a tensor that nobody else needs: in place where no gradient asks for it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Downsample(nn.Module):
    """Halve the resolution: 2×2 mean, or a strided 3×3 convolution padded on all sides (`same`) or right and bottom."""

    def __init__(self, channels, kind):
        super().__init__()
        self.pad = kind == "conv"
        self.conv = None if kind == "mean" else nn.Conv2d(channels, channels, 3, stride=2, padding=int(kind == "same"))

    def forward(self, x):  # (n, C, H, W) → (n, C, H/2, W/2)
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad else x)


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a 3×3 convolution unless `kind` is "mean"."""

    def __init__(self, channels, kind):
        super().__init__()
        self.conv = None if kind == "mean" else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):  # (n, C, H, W) → (n, C, 2H, 2W)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a skip; the time embedding enters before the second half.

    resample: None, or "down" / "up" for the residual blocks that change the resolution (PF_deep).
    """

    def __init__(self, in_channels, out_channels, settings, resample=None):
        super().__init__()
        s = settings
        self.scale_shift, self.rescale, self.resample = s.scale_shift, s.skip_rescale, resample
        self.norm1 = GroupNorm(in_channels, s.norm_eps, s.narrow_groups, s.norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.temb_proj = nn.Linear(4 * s.channels, out_channels * (2 if s.scale_shift else 1))
        self.norm2 = GroupNorm(out_channels, s.norm_eps, s.narrow_groups, s.norm_groups)
        self.dropout = nn.Dropout(s.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        needed = in_channels != out_channels or resample
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if needed else None

    def forward(self, x, temb):  # (n, C, H, W), SiLU of the embedding (n, 4·channels) → (n, C', H', W')
        h = silu(self.norm1(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = (F.interpolate(v, scale_factor=2.0, mode="nearest") for v in (h, x))
        h = self.conv1(h)
        e = self.temb_proj(temb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h.add_(e))
        h = self.conv2(self.dropout(silu(h)))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return h.add_(x) * 0.5**0.5 if self.rescale else h.add_(x)


class Attention(nn.Module):
    """Self-attention over the H·W positions, around a skip. qkv rows: all q, then all k, then all v, head by head."""

    def __init__(self, channels, heads, settings):
        super().__init__()
        self.heads, self.rescale = heads, settings.skip_rescale
        self.norm = GroupNorm(channels, settings.norm_eps, settings.narrow_groups, settings.norm_groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x):  # (n, C, H, W) → the same
        n, c, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (n, H·W, C)
        q, k, v = self.qkv(tokens).view(n, -1, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1, c)
        h = self.proj_out(h).transpose(1, 2).reshape(n, c, height, width)
        return h.add_(x) * 0.5**0.5 if self.rescale else h.add_(x)
