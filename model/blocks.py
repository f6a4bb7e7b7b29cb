"""The parts of the UNet, each with the variations that the published networks need."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from pndm.model.kernels import attention, group_norm, silu


def sinusoidal_embedding(t, channels, cosine_first=False, shift=1):
    """Embed times t (n,) as (n, channels) float32: sin and cos of t · 10000^(−i/(half−shift)), i < half.

    It is float32 in every precision of the network: that is the function the published networks learned.
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    phase = t.float()[:, None] * torch.exp(-math.log(10000) / (half - shift) * index)
    pair = (phase.cos(), phase.sin()) if cosine_first else (phase.sin(), phase.cos())
    return F.pad(torch.cat(pair, dim=1), (0, channels % 2))


class GroupNorm(nn.GroupNorm):
    """settings.norm_groups groups; if settings.narrow_groups, of four channels each, 32 groups at most."""

    def __init__(self, channels, settings):
        groups = min(channels // 4, 32) if settings.narrow_groups else settings.norm_groups
        super().__init__(groups, channels, eps=settings.norm_eps)

    def forward(self, x, activate=False):  # (n, C, H, W) → the same; with SiLU if `activate`
        return group_norm(x, self.weight, self.bias, self.num_groups, self.eps, activate)


def halve(x):
    """The 2×2 mean: (n, C, H, W) → (n, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)


def double(x):
    """The nearest neighbour: (n, C, H, W) → (n, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def fir(x, padding):
    """Filter with [1, 3, 3, 1]/8 in both directions and take every second pixel: (H, W) → (H + 2·padding − 2)/2.

    The filter is three means of two, the last of which steps by two.
    """
    return F.avg_pool2d(F.avg_pool2d(F.avg_pool2d(x, 2, 1, padding), 2, 1), 2)


def fir_halve(x):
    """The filter [1, 3, 3, 1]: (n, C, H, W) → (n, C, H/2, W/2)."""
    return fir(x, padding=1)


def fir_double(x):
    """The filter [1, 3, 3, 1] between the pixels: (n, C, H, W) → (n, C, 2H, 2W); zeros lie around the image."""
    return F.avg_pool2d(F.avg_pool2d(double(x), 2, 1, 1), 2, 1)


class Pyramid(nn.Module):
    """The image, or what this layer of the level above made of it, halved by a convolution and the FIR filter."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=2)

    def forward(self, x):  # (n, C, H, W) → (n, C', H/2, W/2)
        return fir(self.conv(x), padding=0)


class Fourier(nn.Module):
    """Embed times t (n,) as (n, channels): sin and cos of 2π·f·t at random frequencies f, which are kept."""

    def __init__(self, channels):
        super().__init__()
        self.freqs = nn.Parameter(16 * torch.randn(channels // 2), requires_grad=False)

    def forward(self, t):
        phase = t.float()[:, None] * (2 * math.pi * self.freqs.float())
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class Downsample(nn.Module):
    """Halve the resolution: 2×2 mean, or a strided 3×3 convolution padded on all sides ("same") or right and bottom."""

    def __init__(self, channels, kind):
        super().__init__()
        self.pad = kind == "conv"
        self.conv = None if kind == "mean" else nn.Conv2d(channels, channels, 3, stride=2, padding=int(kind == "same"))

    def forward(self, x, temb):  # (n, C, H, W) → (n, C, H/2, W/2); temb is not used
        if self.conv is None:
            return halve(x)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad else x)


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a 3×3 convolution unless `kind` is "mean"."""

    def __init__(self, channels, kind):
        super().__init__()
        self.conv = None if kind == "mean" else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, temb):  # (n, C, H, W) → (n, C, 2H, 2W); temb is not used
        return double(x) if self.conv is None else self.conv(double(x))


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a skip; the time embedding enters before the second half.

    resample: the function that changes the resolution, where the block does (PF_deep, EDM).
    """

    def __init__(self, in_channels, out_channels, s, resample=None):  # s: the network's `Settings`
        super().__init__()
        self.scale_shift, self.rescale, self.resample = s.scale_shift, s.skip_rescale, resample
        self.norm1 = GroupNorm(in_channels, s)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.temb_proj = nn.Linear(4 * s.channels, out_channels * (2 if s.scale_shift else 1))
        self.norm2 = GroupNorm(out_channels, s)
        self.dropout = nn.Dropout(s.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        needed = in_channels != out_channels or (resample and s.resample_shortcut)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if needed else None

    def forward(self, x, temb):  # (n, C, H, W), SiLU of the embedding (n or 1, 4·channels) → (n, C', H', W')
        h = self.norm1(x, activate=True)
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        e = self.temb_proj(temb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = silu(self.norm2(h) * (1 + scale) + shift)
        else:
            h = self.norm2(h.add_(e), activate=True)
        h = self.conv2(self.dropout(h))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return h.add_(x) * 0.5**0.5 if self.rescale else h.add_(x)


class Attention(nn.Module):
    """Self-attention over the H·W positions, around a skip. qkv rows: all q, then all k, then all v, head by head."""

    def __init__(self, channels, heads, settings):
        super().__init__()
        self.heads = channels // settings.head_channels if settings.head_channels else heads
        self.rescale = settings.skip_rescale
        self.norm = GroupNorm(channels, settings)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x):  # (n, C, H, W) → the same
        n, c, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (n, H·W, C)
        q, k, v = self.qkv(tokens).view(n, -1, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        h = attention(q, k, v).transpose(1, 2).reshape(n, -1, c)
        h = self.proj_out(h).transpose(1, 2).reshape(n, c, height, width)
        return h.add_(x) * 0.5**0.5 if self.rescale else h.add_(x)
