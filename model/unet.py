"""The one UNet: its settings give the four published networks (DDIM, iDDPM, PF, PF_deep) and most of diffusers'."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pndm.config.errors import InputError
from pndm.config.load import model_section
from pndm.model.blocks import Attention, Downsample, GroupNorm, ResBlock, Upsample, silu, sinusoidal_embedding


@dataclass(frozen=True)
class Settings:
    """What the published networks differ in; the defaults are those of DDIM (Ho et al.) for CIFAR10.

    attention: the levels (0 is the finest) that have it; attention_up: after "every" block on the way up or the
    "last" of the level. heads, heads_up: their number on the way down and up; head_channels, when given, sets
    the number by the channels instead. resample: "conv" (padded right and bottom), "same" (padded on all
    sides), "mean" (no convolution) or "block" (residual blocks). out_channels beyond in_channels are variances,
    which no method here uses.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention: tuple[int, ...] = (1,)
    attention_up: str = "every"
    heads: int = 1
    heads_up: int = 1
    head_channels: int | None = None
    dropout: float = 0.0
    cosine_first: bool = False
    frequency_shift: int = 1
    scale_shift: bool = False
    norm_eps: float = 1e-6
    narrow_groups: bool = False
    norm_groups: int = 32
    skip_rescale: bool = False
    resample: str = "conv"

    @property
    def factor(self):
        """What the image size must be a multiple of."""
        return 2 ** (len(self.multipliers) - 1)


class Level(nn.Module):
    """The blocks of one resolution, with the attention after them and the change of resolution at the end."""

    def __init__(self, blocks, attention, resample, name):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attention)
        if resample is not None:
            self.add_module(name, resample)
        self.resample_name = name if resample is not None else None


class UNet(nn.Module):
    """ε(x, t) with x (n, C, H, W) in about [−1, 1], t (n,) in training steps 0 … 999; returns ε like x.

    H and W must be multiples of `settings.factor`. Parameters are named as in the DDIM code, except that q, k
    and v are one matrix.
    """

    def __init__(self, settings):
        super().__init__()
        s = self.settings = settings
        width = [s.channels * m for m in s.multipliers]
        top = len(width) - 1

        def attention(channels, heads):
            return Attention(channels, channels // s.head_channels if s.head_channels else heads, s)

        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList(
            [nn.Linear(s.channels, 4 * s.channels), nn.Linear(4 * s.channels, 4 * s.channels)]
        )
        self.conv_in = nn.Conv2d(s.in_channels, s.channels, 3, padding=1)

        self.down, skips, c = nn.ModuleList(), [s.channels], s.channels
        for level, out in enumerate(width):
            blocks = [ResBlock(c if i == 0 else out, out, s) for i in range(s.num_res_blocks)]
            attn = [attention(out, s.heads) for _ in blocks if level in s.attention]
            skips += [out] * s.num_res_blocks
            resample = None
            if level < top:
                resample = ResBlock(out, out, s, "down") if s.resample == "block" else Downsample(out, s.resample)
                skips.append(out)
            self.down.append(Level(blocks, attn, resample, "downsample"))
            c = out

        self.mid = nn.Module()
        self.mid.block_1 = ResBlock(c, c, s)
        self.mid.attn_1 = attention(c, s.heads)
        self.mid.block_2 = ResBlock(c, c, s)

        levels = []
        for level in reversed(range(len(width))):
            out = width[level]
            blocks = [ResBlock((c if i == 0 else out) + skips.pop(), out, s) for i in range(s.num_res_blocks + 1)]
            attn = [attention(out, s.heads_up) for _ in blocks if level in s.attention]
            if s.attention_up == "last":
                attn = attn[:1]
            resample = None
            if level > 0:
                resample = ResBlock(out, out, s, "up") if s.resample == "block" else Upsample(out, s.resample)
            levels.append(Level(blocks, attn, resample, "upsample"))
            c = out
        self.up = nn.ModuleList(reversed(levels))

        self.norm_out = GroupNorm(c, s.norm_eps, s.narrow_groups, s.norm_groups)
        self.conv_out = nn.Conv2d(c, s.out_channels, 3, padding=1)
        self.inner = None

    def set_inner(self, dtype):
        """For inference: run everything between the first and the last convolution in `dtype`, channels last.

        What sees x, t and ε keeps its precision: near t = 0 rounding x alone would be a large error in ε.
        """
        self.inner = dtype
        for part in (self.down, self.mid, self.up, self.norm_out):
            part.to(dtype)

    def forward(self, x, t):
        s = self.settings
        if t.stride(0) == 0:  # one time for all images, as `solve` expands it
            t = t[:1]
        temb = sinusoidal_embedding(t, s.channels, s.cosine_first, s.frequency_shift).to(x.dtype)
        temb = F.silu(self.temb.dense[1](F.silu(self.temb.dense[0](temb))))  # every block begins with this SiLU

        h = self.conv_in(x)
        if self.inner:
            h, temb = h.to(self.inner, memory_format=torch.channels_last), temb.to(self.inner)
        skips = [h]
        for level in self.down:
            for i, block in enumerate(level.block):
                h = block(h, temb)
                if len(level.attn):
                    h = level.attn[i](h)
                skips.append(h)
            if level.resample_name:
                h = level.downsample(h, temb) if s.resample == "block" else level.downsample(h)
                skips.append(h)

        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, temb)), temb)

        for level in reversed(self.up):
            for i, block in enumerate(level.block):
                h = block(torch.cat([h, skips.pop()], dim=1), temb)
                if len(level.attn) > i and s.attention_up == "every":
                    h = level.attn[i](h)
            if len(level.attn) and s.attention_up == "last":
                h = level.attn[0](h)
            if level.resample_name:
                h = level.upsample(h, temb) if s.resample == "block" else level.upsample(h)

        h = silu(self.norm_out(h))
        return self.conv_out(h.to(x.dtype) if self.inner else h)[:, : s.in_channels].contiguous()

    def layers(self):
        """Names of the layers in the order of use, with their kind: how published files number or name them."""
        yield "dense", "temb.dense.0"
        yield "dense", "temb.dense.1"
        yield "conv", "conv_in"
        for i, level in enumerate(self.down):
            yield from self._layers_of(level, f"down.{i}", "every")
        for kind, name in (("block", "block_1"), ("attn", "attn_1"), ("block", "block_2")):
            yield kind, f"mid.{name}"
        for i, level in reversed(list(enumerate(self.up))):
            yield from self._layers_of(level, f"up.{i}", self.settings.attention_up)
        yield "norm", "norm_out"
        yield "conv", "conv_out"

    def _layers_of(self, level, name, attention):
        for i in range(len(level.block)):
            yield "block", f"{name}.block.{i}"
            if len(level.attn) and (attention == "every" or i == len(level.block) - 1):
                yield "attn", f"{name}.attn.{i if attention == 'every' else 0}"
        if level.resample_name:
            kind = "block" if self.settings.resample == "block" else level.resample_name
            yield kind, f"{name}.{level.resample_name}"


def settings_of(config):
    """The `Settings` of a `Model` section (a dict as in the YAML files). Raises InputError."""
    c = model_section(config)
    if c.struc == "iDDPM":
        settings = Settings(
            in_channels=c.in_channels,
            out_channels=c.out_channels,
            channels=c.model_channels,
            multipliers=tuple(c.channel_mult),
            num_res_blocks=c.num_res_blocks,
            attention=tuple(level for level in range(len(c.channel_mult)) if 2**level in c.attention_resolutions),
            heads=c.num_heads,
            heads_up=c.num_heads if c.num_heads_upsample == -1 else c.num_heads_upsample,
            dropout=c.dropout,
            cosine_first=True,
            frequency_shift=0,
            scale_shift=c.use_scale_shift_norm,
            norm_eps=1e-5,
            resample="same" if c.conv_resample else "mean",
        )
    else:
        ddim, deep = c.struc == "DDIM", c.struc == "PF_deep"
        image_channels = c.in_channels if ddim else c.num_channels
        settings = Settings(
            in_channels=image_channels,
            out_channels=c.out_ch if ddim else image_channels,
            channels=c.ch if ddim else c.nf,
            multipliers=tuple(c.ch_mult),
            num_res_blocks=c.num_res_blocks,
            attention=tuple(i for i in range(len(c.ch_mult)) if c.image_size // 2**i in c.attn_resolutions),
            attention_up="every" if ddim else "last",
            dropout=c.dropout,
            narrow_groups=deep,
            norm_groups=c.norm_groups if ddim else 32,
            skip_rescale=deep and c.skip_rescale,
            resample="block" if deep else "conv" if c.resamp_with_conv else "mean",
        )
        if c.image_size % settings.factor:
            raise InputError(f"Model.image_size {c.image_size} cannot be halved {len(c.ch_mult) - 1} times")
    if settings.out_channels < settings.in_channels:
        raise InputError(f"the Model's {settings.out_channels} output channels cannot hold ε of {settings.in_channels}")
    for level in {*settings.attention, len(settings.multipliers) - 1}:
        width = settings.channels * settings.multipliers[level]
        for heads in (settings.heads, settings.heads_up):
            if heads < 1 or width % heads:
                raise InputError(f"the Model's {width} channels at level {level} cannot be shared by {heads} heads")
    widest = 2 * settings.channels * max(settings.multipliers)
    groups = (
        4 if settings.narrow_groups and widest < 132 else settings.norm_groups
    )  # narrow: a group of four channels, until there are 32 groups
    if settings.channels % groups:
        raise InputError(f"the Model's channels are {settings.channels}; a multiple of {groups} is needed")
    return settings
