"""The one UNet: its settings give the four published networks (DDIM, iDDPM, PF, PF_deep) and most of diffusers'."""

import torch
import torch.nn.functional as F
from torch import nn

from pndm.model.blocks import Attention, Downsample, GroupNorm, ResBlock, Upsample, double, halve, sinusoidal_embedding


class Level(nn.Module):
    """The blocks of one resolution; attn[j] follows block `attended[j]`. inputs: channels that each block takes."""

    def __init__(self, inputs, out, attended, heads, settings):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(c, out, settings) for c in inputs)
        self.attn = nn.ModuleList(Attention(out, heads, settings) for _ in attended)
        self.attended = attended
        self.downsample = self.upsample = None  # the way to the next level, where there is one

    def run(self, i, h, temb):
        """Block i, and the attention after it where there is one."""
        h = self.block[i](h, temb)
        return self.attn[self.attended.index(i)](h) if i in self.attended else h

    def layers(self):
        """Names of the layers in the order of use."""
        for i in range(len(self.block)):
            yield f"block.{i}"
            if i in self.attended:
                yield f"attn.{self.attended.index(i)}"
        yield from (name for name in ("downsample", "upsample") if getattr(self, name) is not None)


class UNet(nn.Module):
    """ε(x, t) with x (n, C, H, W) in about [−1, 1], t (n,) in training steps 0 … 999; returns ε like x.

    t may have shape (1,) for images that share one time: it is then embedded once. H and W must be multiples of
    2^(levels − 1). Parameters are named as in the DDIM code, except that q, k and v are one matrix.
    """

    broadcasts_time = True  # t of shape (1,) is taken for any number of images

    def __init__(self, settings):
        super().__init__()
        s = self.settings = settings
        width, blocks, deep = [s.channels * m for m in s.multipliers], s.num_res_blocks, s.resample == "block"
        wide = 4 * s.channels
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(s.channels, wide), nn.Linear(wide, wide)])
        self.conv_in = nn.Conv2d(s.in_channels, s.channels, 3, padding=1)

        self.down, skips, c = nn.ModuleList(), [s.channels], s.channels
        for i, out in enumerate(width):
            attended = range(blocks if i in s.attention else 0)
            level = Level([c] + [out] * (blocks - 1), out, attended, s.heads, s)
            skips += [out] * blocks
            if i < len(width) - 1:
                level.downsample = ResBlock(out, out, s, halve) if deep else Downsample(out, s.resample)
                skips.append(out)
            self.down.append(level)
            c = out

        self.mid = nn.Module()
        self.mid.block_1 = ResBlock(c, c, s)
        self.mid.attn_1 = Attention(c, s.heads, s)
        self.mid.block_2 = ResBlock(c, c, s)

        levels = []
        for i, out in reversed([*enumerate(width)]):
            attended = range(blocks + 1 if i in s.attention else 0)
            if s.attention_up == "last":
                attended = attended[-1:]
            inputs = [h + skips.pop() for h in [c] + [out] * blocks]
            level = Level(inputs, out, attended, s.heads_up, s)
            if i > 0:
                level.upsample = ResBlock(out, out, s, double) if deep else Upsample(out, s.resample)
            levels.append(level)
            c = out
        self.up = nn.ModuleList(reversed(levels))

        self.norm_out = GroupNorm(c, s)
        self.conv_out = nn.Conv2d(c, s.out_channels, 3, padding=1)
        self.inner = None

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
            for i in range(len(level.block)):
                h = level.run(i, h, temb)
                skips.append(h)
            if level.downsample is not None:
                h = level.downsample(h, temb)
                skips.append(h)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, temb)), temb)
        for level in reversed(self.up):
            for i in range(len(level.block)):
                h = level.run(i, torch.cat([h, skips.pop()], dim=1), temb)
            if level.upsample is not None:
                h = level.upsample(h, temb)
        h = self.norm_out(h, activate=True)
        return self.conv_out(h.to(x.dtype) if self.inner else h)[:, : s.in_channels].contiguous()

    def layers(self):
        """Names of the layers in the order of use: how published files number or name them."""
        yield from ("temb.dense.0", "temb.dense.1", "conv_in")
        for i, level in enumerate(self.down):
            yield from (f"down.{i}.{name}" for name in level.layers())
        yield from ("mid.block_1", "mid.attn_1", "mid.block_2")
        for i, level in reversed([*enumerate(self.up)]):
            yield from (f"up.{i}.{name}" for name in level.layers())
        yield from ("norm_out", "conv_out")
