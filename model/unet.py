"""The one UNet: its settings give the four published networks (DDIM, iDDPM, PF, PF_deep) and most of diffusers'."""

import torch
import torch.nn.functional as F
from torch import nn

from pndm.model.blocks import (
    Attention,
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
    double,
    halve,
    silu,
    sinusoidal_embedding,
)


class Level(nn.Module):
    """The blocks of one resolution; attn[j] follows block `attended[j]`."""

    def __init__(self, blocks, attention, attended):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attention)
        self.attended = tuple(attended)

    def attend(self, i, h):
        """The attention after block i, where there is one."""
        return self.attn[self.attended.index(i)](h) if i in self.attended else h

    def layers(self):
        """Kind and name of the layers in the order of use."""
        for i in range(len(self.block)):
            yield "block", f"block.{i}"
            if i in self.attended:
                yield "attn", f"attn.{self.attended.index(i)}"


class DownLevel(Level):
    """A level on the way down: what leaves a layer is kept in `skips` for the way up."""

    def __init__(self, blocks, attention, attended, downsample):
        super().__init__(blocks, attention, attended)
        self.downsample = downsample  # None at the coarsest level

    def forward(self, h, temb, skips):  # (n, C, H, W) → (n, C', H/2, W/2), at the coarsest level (n, C', H, W)
        for i, block in enumerate(self.block):
            h = self.attend(i, block(h, temb))
            skips.append(h)
        if self.downsample is not None:
            h = self.downsample(h, temb)
            skips.append(h)
        return h

    def layers(self):
        yield from super().layers()
        if self.downsample is not None:
            yield self.downsample.kind, "downsample"


class UpLevel(Level):
    """A level on the way up: every block takes the newest of `skips` as further channels."""

    def __init__(self, blocks, attention, attended, upsample):
        super().__init__(blocks, attention, attended)
        self.upsample = upsample  # None at the finest level

    def forward(self, h, temb, skips):  # (n, C, H, W) → (n, C', 2H, 2W), at the finest level (n, C', H, W)
        for i, block in enumerate(self.block):
            h = self.attend(i, block(torch.cat([h, skips.pop()], dim=1), temb))
        return h if self.upsample is None else self.upsample(h, temb)

    def layers(self):
        yield from super().layers()
        if self.upsample is not None:
            yield self.upsample.kind, "upsample"


class UNet(nn.Module):
    """ε(x, t) with x (n, C, H, W) in about [−1, 1], t (n,) in training steps 0 … 999; returns ε like x.

    t may have shape (1,) for images that share one time: it is then embedded once. H and W must be multiples of
    `settings.factor`. Parameters are named as in the DDIM code, except that q, k and v are one matrix.
    """

    broadcasts_time = True  # t of shape (1,) is taken for any number of images

    def __init__(self, settings):
        super().__init__()
        s = self.settings = settings
        width = [s.channels * m for m in s.multipliers]
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList(
            [nn.Linear(s.channels, 4 * s.channels), nn.Linear(4 * s.channels, 4 * s.channels)]
        )
        self.conv_in = nn.Conv2d(s.in_channels, s.channels, 3, padding=1)

        self.down, skips, c = nn.ModuleList(), [s.channels], s.channels
        for level, out in enumerate(width):
            inputs = [c] + [out] * (s.num_res_blocks - 1)
            coarsest = level == len(width) - 1
            self.down.append(self._down_level(level, inputs, out, coarsest))
            skips += [out] * (s.num_res_blocks + (not coarsest))
            c = out

        self.mid = nn.Module()
        self.mid.block_1 = ResBlock(c, c, s)
        self.mid.attn_1 = self._attention(c, s.heads)
        self.mid.block_2 = ResBlock(c, c, s)

        levels = []
        for level in reversed(range(len(width))):
            out = width[level]
            inputs = [h + skips.pop() for h in [c] + [out] * s.num_res_blocks]
            levels.append(self._up_level(level, inputs, out))
            c = out
        self.up = nn.ModuleList(reversed(levels))

        self.norm_out = GroupNorm(c, s.norm_eps, s.narrow_groups, s.norm_groups)
        self.conv_out = nn.Conv2d(c, s.out_channels, 3, padding=1)
        self.inner = None

    def _attention(self, channels, heads):
        s = self.settings
        return Attention(channels, channels // s.head_channels if s.head_channels else heads, s)

    def _down_level(self, level, inputs, out, coarsest):
        s = self.settings
        blocks = [ResBlock(c, out, s) for c in inputs]
        attended = range(len(blocks)) if level in s.attention else range(0)
        attention = [self._attention(out, s.heads) for _ in attended]
        if coarsest:
            return DownLevel(blocks, attention, attended, None)
        resampler = ResBlock(out, out, s, halve) if s.resample == "block" else Downsample(out, s.resample)
        return DownLevel(blocks, attention, attended, resampler)

    def _up_level(self, level, inputs, out):
        s = self.settings
        blocks = [ResBlock(c, out, s) for c in inputs]
        attended = range(len(blocks)) if level in s.attention else range(0)
        if s.attention_up == "last":
            attended = attended[-1:]
        attention = [self._attention(out, s.heads_up) for _ in attended]
        if level == 0:
            return UpLevel(blocks, attention, attended, None)
        resampler = ResBlock(out, out, s, double) if s.resample == "block" else Upsample(out, s.resample)
        return UpLevel(blocks, attention, attended, resampler)

    def set_inner(self, dtype):
        """For inference: run everything between the first and the last convolution in `dtype`, channels last.

        What sees x, t and ε keeps its precision: near t = 0, rounding x alone would be a large error in ε.
        """
        self.inner = dtype
        for part in (self.down, self.mid, self.up, self.norm_out):
            part.to(dtype)

    def forward(self, x, t):
        s = self.settings
        temb = sinusoidal_embedding(t, s.channels, s.cosine_first, s.frequency_shift).to(x.dtype)
        temb = F.silu(self.temb.dense[1](F.silu(self.temb.dense[0](temb))))  # every block begins with this SiLU

        h = self.conv_in(x)
        if self.inner:
            h, temb = h.to(self.inner, memory_format=torch.channels_last), temb.to(self.inner)
        skips = [h]
        for level in self.down:
            h = level(h, temb, skips)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, temb)), temb)
        for level in reversed(self.up):
            h = level(h, temb, skips)
        h = silu(self.norm_out(h))
        return self.conv_out(h.to(x.dtype) if self.inner else h)[:, : s.in_channels].contiguous()

    def layers(self):
        """Kind and name of the layers in the order of use: how published files number or name them."""
        yield "dense", "temb.dense.0"
        yield "dense", "temb.dense.1"
        yield "conv", "conv_in"
        for i, level in enumerate(self.down):
            for kind, name in level.layers():
                yield kind, f"down.{i}.{name}"
        yield "block", "mid.block_1"
        yield "attn", "mid.attn_1"
        yield "block", "mid.block_2"
        for i, level in reversed(list(enumerate(self.up))):
            for kind, name in level.layers():
                yield kind, f"up.{i}.{name}"
        yield "norm", "norm_out"
        yield "conv", "conv_out"
