"""Read a checkpoint in any published format, without executing anything in it, into the names of `UNet`.

Three questions, one after the other: what container is the file (`read`), which tensors in it are the network's
(`_weights`: EMA before raw), and how is each tensor called and laid out there (`layout`).
"""

import hashlib
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from config.errors import InputError

FAMILIES = ("own", "DDIM", "iDDPM", "PF", "diffusers")

# Name in a published file for each part of a layer, by family.
_BLOCK = {
    "DDIM": {"norm1": "norm1", "conv1": "conv1", "temb_proj": "temb_proj", "norm2": "norm2", "conv2": "conv2",
             "shortcut": "nin_shortcut"},
    "iDDPM": {"norm1": "in_layers.0", "conv1": "in_layers.2", "temb_proj": "emb_layers.1", "norm2": "out_layers.0",
              "conv2": "out_layers.3", "shortcut": "skip_connection"},
    "PF": {"norm1": "GroupNorm_0", "conv1": "Conv_0", "temb_proj": "Dense_0", "norm2": "GroupNorm_1",
           "conv2": "Conv_1", "shortcut": "NIN_0"},
    "diffusers": {"norm1": "norm1", "conv1": "conv1", "temb_proj": "time_emb_proj", "norm2": "norm2",
                  "conv2": "conv2", "shortcut": "conv_shortcut"},
}  # fmt: skip
_ATTENTION = {
    "DDIM": {"norm": "norm", "qkv": ("q", "k", "v"), "proj_out": "proj_out"},
    "iDDPM": {"norm": "norm", "qkv": ("qkv",), "proj_out": "proj_out"},
    "PF": {"norm": "GroupNorm_0", "qkv": ("NIN_0", "NIN_1", "NIN_2"), "proj_out": "NIN_3"},
    "diffusers": {"norm": "group_norm", "qkv": ("to_q", "to_k", "to_v"), "proj_out": "to_out.0"},
}
_RESAMPLE = {
    "DDIM": {"downsample": "conv", "upsample": "conv"},
    "iDDPM": {"downsample": "op", "upsample": "conv"},
    "PF": {"downsample": "Conv_0", "upsample": "Conv_0"},
    "diffusers": {"downsample": "conv", "upsample": "conv"},
}
# diffusers renamed the parts of its attention in 0.15; published files have the old names.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass
class Checkpoint:
    """Tensors as a file names them, and what is known of them."""

    tensors: dict
    container: str
    weights: str = "not stated"  # "EMA", "raw" or "not stated"
    path: str | None = None
    metadata: dict = field(default_factory=dict)

    @property
    def family(self):
        """Which naming the tensors have; None when it is none that is known."""
        names = self.tensors
        if "conv_in.weight" in names and any(".attn_1.qkv." in name for name in names):
            return "own"
        marks = {"temb.dense.0.weight": "DDIM", "input_blocks.0.0.weight": "iDDPM", "all_modules.0.weight": "PF",
                 "time_embedding.linear_1.weight": "diffusers"}  # fmt: skip
        return next((family for mark, family in marks.items() if mark in names), None)


@dataclass(frozen=True)
class Source:
    """Where a tensor of `UNet` comes from: the published names, the shape of each, and how to make one of them."""

    names: tuple
    shape: tuple
    make: object


def layout(network, family):
    """For a UNet: its tensor names → `Source` in a published family's naming."""
    shapes = {name: tuple(p.shape) for name, p in network.state_dict().items()}
    if family == "own":
        return {name: Source((name,), shape, lambda v: v) for name, shape in shapes.items()}
    prefixes = _PREFIXES[family](network)
    sources = {}
    for kind, layer in network.layers():
        for name in [name for name in shapes if name.startswith(layer + ".")]:
            *part, leaf = name.removeprefix(layer + ".").split(".")
            sources[name] = _source(network, family, kind, layer, prefixes[layer], ".".join(part), leaf, shapes[name])
    return sources


def _source(network, family, kind, layer, prefix, part, leaf, shape):
    nin = family == "PF" and (part in ("qkv", "proj_out") or (part == "shortcut" and _has_nin(network)))
    if kind == "attn":
        parts = _ATTENTION[family][part]
        parts = (parts,) if isinstance(parts, str) else parts
    elif kind == "block":
        parts = ("Conv_2",) if family == "PF" and part == "shortcut" and not nin else (_BLOCK[family][part],)
    elif kind == "resample":
        parts = (_RESAMPLE[family][layer.rpartition(".")[2]],)
    else:
        parts = ("",)
    names = tuple(
        ".".join(filter(None, (prefix, p, {"weight": "W", "bias": "b"}[leaf] if nin else leaf))) for p in parts
    )

    rows = (shape[0] // len(parts), *shape[1:])
    if nin and leaf == "weight":
        return Source(names, rows[1::-1], lambda *v: torch.cat([w.T for w in v]).reshape(shape))
    if kind == "attn" and part == "qkv" and family == "iDDPM":
        heads = network.get_submodule(layer).heads
        split = (heads, 3, -1, *shape[1:])
        published = shape + (1,) * (leaf == "weight")
        return Source(names, published, lambda v: v.reshape(split).transpose(0, 1).reshape(shape))
    if kind == "attn" and leaf == "weight" and part != "norm":
        rows += {"DDIM": (1, 1), "iDDPM": (1,)}.get(family, ())
    return Source(names, rows, lambda *v: (torch.cat(v) if len(v) > 1 else v[0]).reshape(shape))


def _has_nin(network):
    return network.settings.resample != "block"


def _ddim_prefixes(network):
    return {layer: layer for _, layer in network.layers()}


def _pf_prefixes(network):
    return {layer: f"all_modules.{i}" for i, (_, layer) in enumerate(network.layers())}


def _iddpm_prefixes(network):
    fixed = {"temb.dense.0": "time_embed.0", "temb.dense.1": "time_embed.2", "conv_in": "input_blocks.0.0",
             "mid.block_1": "middle_block.0", "mid.attn_1": "middle_block.1", "mid.block_2": "middle_block.2",
             "norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
    prefixes, down, up, inner = {}, 0, -1, 0
    for kind, layer in network.layers():
        if layer in fixed:
            prefixes[layer] = fixed[layer]
        elif layer.startswith("down"):
            down, inner = (down, inner + 1) if kind == "attn" else (down + 1, 0)
            prefixes[layer] = f"input_blocks.{down}.{inner}"
        else:
            up, inner = (up + 1, 0) if kind == "block" else (up, inner + 1)
            prefixes[layer] = f"output_blocks.{up}.{inner}"
    return prefixes


def _diffusers_prefixes(network):
    fixed = {"temb.dense.0": "time_embedding.linear_1", "temb.dense.1": "time_embedding.linear_2",
             "conv_in": "conv_in", "mid.block_1": "mid_block.resnets.0", "mid.attn_1": "mid_block.attentions.0",
             "mid.block_2": "mid_block.resnets.1", "norm_out": "conv_norm_out", "conv_out": "conv_out"}  # fmt: skip
    words = {"block": "resnets", "attn": "attentions", "downsample": "downsamplers", "upsample": "upsamplers"}
    top = len(network.settings.multipliers) - 1
    prefixes = {}
    for _, layer in network.layers():
        if layer in fixed:
            prefixes[layer] = fixed[layer]
        else:
            way, level, word, *index = layer.split(".")
            level = int(level) if way == "down" else top - int(level)
            prefixes[layer] = f"{way}_blocks.{level}.{words[word]}.{(index or ['0'])[0]}"
    return prefixes


_PREFIXES = {"DDIM": _ddim_prefixes, "iDDPM": _iddpm_prefixes, "PF": _pf_prefixes, "diffusers": _diffusers_prefixes}


def state_dict_for(network, checkpoint):
    """The checkpoint's tensors under the names of `network`, a UNet. Raises InputError with the first that differ."""
    where = checkpoint.path or "state dict"
    family = checkpoint.family
    if family is None:
        raise InputError(f"{where}: no known network; its first tensors are {_some(checkpoint.tensors)}")
    sources = layout(network, family)
    expected = {name: source.shape for source in sources.values() for name in source.names}
    if problem := difference(expected, checkpoint.tensors):
        raise InputError(f"{where}: does not fit the Model section: {problem}")
    return {name: source.make(*(checkpoint.tensors[n] for n in source.names)) for name, source in sources.items()}


def difference(expected, tensors):
    """One line on how named tensors differ from the expected names and shapes; "" when they do not."""
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    wrong = [name for name in expected if name in tensors and tuple(tensors[name].shape) != tuple(expected[name])]
    odd = [name for name in expected if name in tensors and not tensors[name].is_floating_point()]
    if wrong:
        name = wrong[0]
        found = f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name])}"
        return found + (f", and {len(wrong) - 1} more shapes differ" if len(wrong) > 1 else "")
    if odd:
        return f"{odd[0]} is {tensors[odd[0]].dtype}, not a floating-point tensor"
    parts = [f"missing {_some(missing)}"] if missing else []
    parts += [f"extra {_some(extra)}"] if extra else []
    return "; ".join(parts)


def _some(names, most=3):
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read(source):
    """A `Checkpoint` from a path, or from a state dict or any published list or dict around one.

    Raises InputError when it is no checkpoint, is damaged, or could only be read by executing code in it.
    """
    if not isinstance(source, (str, Path)):
        return _weights(source, "state dict", None)
    path = Path(source)
    if not path.exists():
        raise InputError(f"--model_path: no file {path}")
    if path.is_dir():
        raise InputError(f"--model_path: {path} is a folder")
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head[:4] == b"PK\x03\x04":
            _check_zip(path)
            return _weights(unpickle(path), "PyTorch file", path)
        if len(head) == 16 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
            return _read_safetensors(path)
        if head[:1] == b"\x80":
            return _weights(unpickle(path), "PyTorch file, old format", path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    raise InputError(f"{path}: not a checkpoint (neither safetensors nor PyTorch), or its beginning is lost")


def _read_safetensors(path):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except SafetensorError as error:
        raise InputError(f"{path}: damaged safetensors file: {error}") from None
    return Checkpoint(tensors, "safetensors", metadata.get("weights", "not stated"), str(path), metadata)


def _check_zip(path):
    """Refuse archives that are cut short or whose entries claim more than the file holds."""
    try:
        claimed = sum(entry.file_size for entry in zipfile.ZipFile(path).infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: damaged or cut short: {error}") from None
    if claimed > path.stat().st_size:
        raise InputError(f"{path}: its entries claim {claimed} bytes, the file has {path.stat().st_size}")


def unpickle(path):
    """What a PyTorch file holds, of tensors and plain containers alone. Raises InputError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), ""
        )
        what = f"could only be read by executing code in it ({reason})" if reason else "damaged"
        raise InputError(f"{path}: {what}") from None
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        raise InputError(
            f"{path}: damaged: {str(error).strip().splitlines()[0] if str(error) else 'cut short'}"
        ) from None


def _is_state(value):
    return isinstance(value, dict) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def _weights(content, container, path):
    """Find the network's tensors in what a file holds: EMA weights before raw ones."""
    where = str(path) if path else "state dict"
    tensors, kind, weights = None, container, "not stated"
    if _is_state(content):
        tensors = content
    elif isinstance(content, (list, tuple)) and len(content) == 5 and _is_state(content[-1]):
        tensors, kind, weights = content[-1], f"{container}: DDIM training list", "EMA"
    elif isinstance(content, (list, tuple)) and len(content) >= 4 and _is_state(content[0]):
        tensors, kind, weights = content[0], f"{container}: training list of the released code", "raw"
    elif isinstance(content, dict) and _is_state(content.get("ema")):
        tensors, kind, weights = content["ema"], f"{container}: training checkpoint of this project", "EMA"
    elif isinstance(content, dict) and _is_state(content.get("model")):
        tensors, kind, weights = content["model"], f"{container}: training checkpoint", "raw"
        ema = content.get("ema")
        if isinstance(ema, dict) and isinstance(ema.get("shadow_params"), (list, tuple)):
            tensors, kind, weights = (
                _score_sde(content["model"], ema["shadow_params"], where),
                f"{container}: score-SDE",
                "EMA",
            )
    if tensors is None:
        raise InputError(f"{where}: holds no network's weights ({_describe(content)})")
    tensors = {_plain(name): value for name, value in tensors.items() if name.removeprefix("module.") != "sigmas"}
    return Checkpoint(tensors, kind, weights, str(path) if path else None)


def _score_sde(model, shadow, where):
    """score-SDE keeps the EMA as a list in the order of the parameters; `sigmas` is a buffer, not one of them."""
    names = [name for name in model if name.removeprefix("module.") != "sigmas"]
    if len(names) != len(shadow) or any(not isinstance(v, torch.Tensor) for v in shadow):
        raise InputError(f"{where}: its EMA list has {len(shadow)} entries for {len(names)} parameters")
    return dict(zip(names, shadow, strict=True))


def _plain(name):
    name = name.removeprefix("module.")
    for old, new in _RENAMED.items():
        name = name.replace(f".{old}.", f".{new}.") if ".attentions." in name else name
    return name


def _describe(content):
    if isinstance(content, dict):
        return f"a dict with {_some(map(str, content))}" if content else "an empty dict"
    return f"a {type(content).__name__}" + (f" of {len(content)}" if isinstance(content, (list, tuple)) else "")


def save(path, tensors, metadata):
    """Write this project's own format: safetensors with metadata, whole or not at all."""
    from safetensors.torch import save_file

    path = Path(path)
    aside = path.with_name(f".{path.name}.tmp")
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, aside, text)
    aside.replace(path)


def sha256(path):
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
