"""The one UNet: its settings give the published networks (DDIM, iDDPM, PF, PF_deep, EDM) and most of diffusers'."""

import torch
import torch.nn.functional as F
from torch import nn

from pndm.model.blocks import (
    Attention,
    Downsample,
    Fourier,
    GroupNorm,
    Pyramid,
    ResBlock,
    Upsample,
    double,
    fir_double,
    fir_halve,
    halve,
    sinusoidal_embedding,
)
from pndm.model.precondition import PRECONDITIONINGS
from pndm.runner.solver.sigma import SigmaSchedule


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

    labels (n,): the class of each image, 0 … settings.labels − 1; −1, or None for all: no class. schedule: the
    `SigmaSchedule` whose t a preconditioned network is told; EDM's own by default.
    """

    broadcasts_time = True  # t of shape (1,) is taken for any number of images

    def __init__(self, settings, schedule=None):
        super().__init__()
        s = self.settings = settings
        self.schedule = (schedule or SigmaSchedule()) if s.preconditioning else None
        width, blocks, deep = [s.channels * m for m in s.multipliers], s.num_res_blocks, s.resample == "block"
        down, up = (fir_halve, fir_double) if s.fir else (halve, double)
        embedded, wide = s.embedding_width * s.channels, 4 * s.channels
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(embedded, wide), nn.Linear(wide, wide)])
        if s.embedding == "fourier":
            self.temb.fourier = Fourier(embedded)
        if s.labels:
            self.temb.labels = nn.Linear(s.labels, wide if s.labels_last else embedded, bias=not s.labels_last)
        self.conv_in = nn.Conv2d(s.in_channels, s.channels, 3, padding=1)

        self.down, skips, c = nn.ModuleList(), [s.channels], s.channels
        for i, out in enumerate(width):
            attended = range(blocks if i in s.attention else 0)
            level = Level([c] + [out] * (blocks - 1), out, attended, s.heads, s)
            skips += [out] * blocks
            if i < len(width) - 1:
                level.downsample = ResBlock(out, out, s, down) if deep else Downsample(out, s.resample)
                skips.append(out)
            self.down.append(level)
            c = out

        if s.pyramid:
            inputs = [s.in_channels, *width][: len(width) - 1]
            self.pyramid = nn.ModuleList(map(Pyramid, inputs, width))

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
                level.upsample = ResBlock(out, out, s, up) if deep else Upsample(out, s.resample)
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

    def forward(self, x, t, labels=None):
        s = self.settings
        if s.preconditioning is None:
            return self.run(x, t, labels)
        exact = torch.float64 if t.device.type in ("cpu", "cuda") else torch.float32  # others may have no float64
        sigma = self.schedule.sigma(t.to(exact)).reshape(-1, 1, 1, 1)
        return PRECONDITIONINGS[s.preconditioning](lambda x, time: self.run(x, time, labels), x, sigma, s.sigma_data)

    def embed(self, t, labels, dtype):
        """The embedding of times t (n or 1,) and classes (n,) or None: (n or 1, 4·channels)."""
        s, temb = self.settings, self.temb
        if s.embedding == "fourier":
            e = temb.fourier(t).to(dtype)
        else:
            e = sinusoidal_embedding(t, s.channels, s.cosine_first, s.frequency_shift).to(dtype)
        label = 0
        if labels is not None and not s.labels:
            raise ValueError("labels are given to a network without classes")
        if s.labels:
            none = torch.zeros(1, s.labels, device=t.device, dtype=dtype)
            classes = torch.arange(s.labels, device=t.device)
            one_hot = none if labels is None else (labels[:, None] == classes).to(dtype)
            label = temb.labels(one_hot if s.labels_last else one_hot * s.labels**0.5)
        e = temb.dense[1](F.silu(temb.dense[0](e if s.labels_last else e + label)))
        return F.silu(e + label if s.labels_last else e)  # every block begins with this SiLU

    def run(self, x, t, labels=None):
        """The network itself, without preconditioning; arguments as of a call, of its own x and time."""
        s = self.settings
        temb = self.embed(t, labels, x.dtype)
        h = self.conv_in(x)
        if self.inner:
            h, temb = h.to(self.inner, memory_format=torch.channels_last), temb.to(self.inner)
        skips, image = [h], x
        for i_level, level in enumerate(self.down):
            for i in range(len(level.block)):
                h = level.run(i, h, temb)
                skips.append(h)
            if level.downsample is not None:
                h = level.downsample(h, temb)
                if s.pyramid:
                    image = (h.to(x.dtype) + self.pyramid[i_level](image)) * 0.5**0.5
                    h = image.to(h.dtype)
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
        s = self.settings
        yield from ("temb.dense.0", "temb.dense.1", "conv_in")
        yield from ["temb.fourier"] * (s.embedding == "fourier") + ["temb.labels"] * bool(s.labels)
        yield from (f"pyramid.{i}" for i in range(len(s.multipliers) - 1) if s.pyramid)
        for i, level in enumerate(self.down):
            yield from (f"down.{i}.{name}" for name in level.layers())
        yield from ("mid.block_1", "mid.attn_1", "mid.block_2")
        for i, level in reversed([*enumerate(self.up)]):
            yield from (f"up.{i}.{name}" for name in level.layers())
        yield from ("norm_out", "conv_out")
