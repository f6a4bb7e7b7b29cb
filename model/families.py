"""How each published family of networks names and stores the tensors of `UNet`.

A family is data: what it calls the parts of a layer, and how it numbers the layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pndm.model.blocks import Downsample, ResBlock
from pndm.model.unet import UNet


class Source(NamedTuple):
    """Where a tensor of `UNet` comes from: the names and the common shape of published tensors, make(*them) → it."""

    names: tuple
    shape: tuple
    make: Callable


@dataclass(frozen=True)
class Family:
    """How a family names and stores tensors.

    places: network → the family's name of each of `network.layers()`. parts: "Class.part" of a layer → the family's
    name of the part, or three names, where q, k and v are apart; a part that is not listed has the same name here.
    attention_axes: the number of further axes, of length 1, where attention's matrices are stored as convolutions.
    by_head: the one matrix of q, k and v is stored head by head, each with its q, k, v. by_channel: within a head it is
    stored channel by channel, each with its q, k, v.
    """

    places: Callable
    parts: dict
    attention_axes: int = 0
    by_head: bool = False
    by_channel: bool = False


def _numbered(network):
    return [f"all_modules.{i}" for i, _ in enumerate(network.layers())]


def _iddpm(network):
    fixed = {"temb.dense.0": "time_embed.0", "temb.dense.1": "time_embed.2", "conv_in": "input_blocks.0.0",
             "mid.block_1": "middle_block.0", "mid.attn_1": "middle_block.1", "mid.block_2": "middle_block.2",
             "norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
    places, group, inner = [], {"down": 0, "up": -1}, 0
    for layer in network.layers():
        way = layer.split(".")[0]
        if layer in fixed:
            places.append(fixed[layer])
            continue
        # A residual block opens a group, and so does a downsampling; any other layer joins the open group.
        if isinstance(network.get_submodule(layer), (ResBlock, Downsample)):
            group[way] += 1
            inner = 0
        else:
            inner += 1
        places.append(f"{'input' if way == 'down' else 'output'}_blocks.{group[way]}.{inner}")
    return places


def _diffusers(network):
    words = {"temb.dense.0": "time_embedding.linear_1", "temb.dense.1": "time_embedding.linear_2",
             "mid.block_1": "mid_block.resnets.0", "mid.attn_1": "mid_block.attentions.0",
             "mid.block_2": "mid_block.resnets.1", "norm_out": "conv_norm_out",
             "block": "resnets", "attn": "attentions",
             "downsample": "downsamplers", "upsample": "upsamplers"}  # fmt: skip
    places, top = [], len(network.settings.multipliers) - 1
    for layer in network.layers():
        way, *rest = layer.split(".")
        if way in ("down", "up"):
            level, word = int(rest[0]), words[rest[1]]
            index = rest[2] if len(rest) == 3 else 0  # a level has one change of resolution, without a number
            layer = f"{way}_blocks.{level if way == 'down' else top - level}.{word}.{index}"
        places.append(words.get(layer, layer))
    return places


def _edm(network):
    """EDM's names, with the number of the level (0 is the finest) in place of its resolution: enc.0.block3."""
    last = network.settings.labels_last  # of ADM, whose end is named apart
    words = {"temb.dense.0": "map_layer0", "temb.dense.1": "map_layer1", "conv_in": "enc.0.conv",
             "temb.fourier": "map_noise", "temb.labels": "map_label",
             "norm_out": "out_norm" if last else "dec.0.aux_norm",
             "conv_out": "out_conv" if last else "dec.0.aux_conv"}  # fmt: skip
    top = f"dec.{len(network.settings.multipliers) - 1}"
    words |= {"mid.block_1": f"{top}.in0", "mid.attn_1": f"{top}.in0", "mid.block_2": f"{top}.in1"}
    places = []
    for layer in network.layers():
        if layer in words:
            places.append(words[layer])
            continue
        way, level, *rest = layer.split(".")
        if way == "pyramid":
            places.append(f"enc.{int(level) + 1}.aux_residual")
        elif rest[0] == "attn":  # part of the block that it follows, which is the last one named
            places.append(places[-1])
        elif rest[0] == "block":
            places.append(f"{'enc' if way == 'down' else 'dec'}.{level}.block{rest[1]}")
        else:  # a change of resolution belongs to the level that it leads to
            places.append(f"enc.{int(level) + 1}.down" if way == "down" else f"dec.{int(level) - 1}.up")
    return places


_PF = {
    "ResBlock.norm1": "GroupNorm_0", "ResBlock.conv1": "Conv_0", "ResBlock.temb_proj": "Dense_0",
    "ResBlock.norm2": "GroupNorm_1", "ResBlock.conv2": "Conv_1", "ResBlock.shortcut": "NIN_0",
    "Attention.norm": "GroupNorm_0", "Attention.qkv": "NIN_0 NIN_1 NIN_2", "Attention.proj_out": "NIN_3",
    "Downsample.conv": "Conv_0", "Upsample.conv": "Conv_0",
}  # fmt: skip
_NEW_DIFFUSERS = {
    "ResBlock.temb_proj": "time_emb_proj", "ResBlock.shortcut": "conv_shortcut",
    "Attention.norm": "group_norm", "Attention.qkv": "to_q to_k to_v", "Attention.proj_out": "to_out.0",
}  # fmt: skip

FAMILIES = {
    "this project": Family(UNet.layers, {}),
    "DDIM": Family(UNet.layers, {"ResBlock.shortcut": "nin_shortcut", "Attention.qkv": "q k v"}, attention_axes=2),
    "iDDPM": Family(_iddpm, attention_axes=1, by_head=True, parts={
        "ResBlock.norm1": "in_layers.0", "ResBlock.conv1": "in_layers.2", "ResBlock.temb_proj": "emb_layers.1",
        "ResBlock.norm2": "out_layers.0", "ResBlock.conv2": "out_layers.3", "ResBlock.shortcut": "skip_connection",
        "Downsample.conv": "op"}),
    "PF": Family(_numbered, _PF),
    "PF_deep": Family(_numbered, _PF | {"ResBlock.shortcut": "Conv_2"}),
    "EDM": Family(_edm, attention_axes=2, by_channel=True, parts={
        "ResBlock.norm1": "norm0", "ResBlock.conv1": "conv0", "ResBlock.temb_proj": "affine",
        "ResBlock.norm2": "norm1", "ResBlock.conv2": "conv1", "ResBlock.shortcut": "skip",
        "Attention.norm": "norm2", "Attention.proj_out": "proj", "Pyramid.conv": ""}),
    "diffusers": Family(_diffusers, _NEW_DIFFUSERS),
    "diffusers before 0.15": Family(_diffusers, _NEW_DIFFUSERS | {
        "Attention.qkv": "query key value", "Attention.proj_out": "proj_attn"}),
}  # fmt: skip


def families_of(network):
    """The names in `FAMILIES` that a network may have."""
    preconditioned = network.settings.preconditioning is not None
    return [name for name in FAMILIES if name == "this project" or (name == "EDM") == preconditioned]


def layout(network, family):
    """For a `UNet`: its tensor names → `Source` in the naming of `family`, a name in `FAMILIES`."""
    family = FAMILIES[family]
    sources = {}
    for layer, place in zip(network.layers(), family.places(network), strict=True):
        module = network.get_submodule(layer)
        kind = type(module).__name__
        for name, tensor in module.named_parameters():
            part, _, leaf = name.rpartition(".")
            parts = family.parts.get(f"{kind}.{part}", part).split(" ")
            if "NIN" in parts[0]:
                leaf = {"weight": "W", "bias": "b"}[leaf]
            names = tuple(".".join(filter(None, (place, part, leaf))) for part in parts)
            mixed = part == "qkv" and (family.by_head or family.by_channel)
            split = (module.heads, *((-1, 3) if family.by_channel else (3, -1))) if mixed else None
            axes = family.attention_axes if kind == "Attention" and tensor.ndim == 2 else 0
            sources[f"{layer}.{name}"] = _source(names, leaf, tuple(tensor.shape), split, axes)
    return sources


def _source(names, leaf, shape, split, axes):
    """split: how the rows of q, k and v are mixed: (heads, 3, channels) or (heads, channels, 3), one of them −1."""
    rows = (shape[0] // len(names), *shape[1:])
    if leaf == "W":  # of a NIN: a matrix (in, out)
        return Source(names, rows[1::-1], lambda *v: torch.cat([w.T for w in v]).reshape(shape))
    if split:
        apart = (*split, *shape[1:])
        first = split.index(3)
        return Source(names, rows + (1,) * axes, lambda v: v.reshape(apart).movedim(first, 0).reshape(shape))
    return Source(names, rows + (1,) * axes, lambda *v: torch.cat(v).reshape(shape))
