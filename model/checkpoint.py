"""Read a checkpoint in any published format, without executing anything in it, into the names of `UNet`.

Three questions, one after the other: what container is the file (`read`), which tensors in it are the network's
(`_find_weights`: EMA before raw), and what is each tensor called there (`closest`, by `model.families`).
"""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from pndm.config.errors import InputError, first_line
from pndm.config.files import aside, bundled
from pndm.model import diffusers, persistence
from pndm.model.families import families_of, layout
from pndm.model.settings import Settings, settings_of
from pndm.model.wrappers import WRAPPERS, unwrapped

_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 begins with its magic number


@dataclass
class Checkpoint:
    """A network's tensors as a file names them, and what the file says of them."""

    tensors: dict
    format: str
    weights: str = "not stated"  # "EMA", "raw" or "not stated"
    path: Path | None = None  # of the file with the tensors
    settings: Settings | None = None  # of the network, where the file or its folder gives them
    record: dict = field(default_factory=dict)  # sections of an experiment, where the file is this project's own

    def __post_init__(self):
        try:
            self.weights, self.record = printable(str(self.weights)), printable(self.record)
        except (RecursionError, ValueError):  # nested for ever; a number of 5,000 digits
            raise InputError(f"{self.path or self.format}: damaged: its record is not plain data") from None

    @property
    def name(self):
        return str(self.path or self.format)


def printable(value):
    """A value with a space for each unprintable character in its strings: a file may hold codes for the terminal."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else " " for c in value)
    if isinstance(value, dict):
        return {printable(name): printable(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(v) for v in value]
    return value


class Fit(NamedTuple):
    """How a checkpoint's tensors compare with a network under the naming of a family."""

    family: str
    sources: dict
    differences: list


def state_dict_for(network, checkpoint):
    """The checkpoint's tensors under the names of `network`, a UNet: copies, so that nothing of the file stays held.

    All are float64 if any is float64 in the checkpoint, else float32.
    Raises InputError with the first setting or the first tensors that differ.
    """
    if checkpoint.settings and (problem := contrast(checkpoint.settings, network.settings)):
        raise InputError(f"{checkpoint.name}: does not fit the Model section: {problem}")
    tensors, fit = checkpoint.tensors, closest(network, checkpoint.tensors)
    if fit.differences:
        first, more = "; ".join(fit.differences[:3]), len(fit.differences) - 3
        more = f"; and {more:,} more" if more > 0 else ""
        raise InputError(f"{checkpoint.name}: does not fit the Model section: {first}{more}")
    dtype = torch.float64 if any(v.dtype == torch.float64 for v in tensors.values()) else torch.float32

    def made(source):
        tensor = source.make(*(tensors[name].detach().to(dtype) for name in source.names))
        return tensor.clone(memory_format=torch.contiguous_format)

    return {name: made(source) for name, source in fit.sources.items()}


def closest(network, tensors):
    """The `Fit` with the fewest differences among all families."""
    layouts = {family: layout(network, family) for family in families_of(network)}
    fits = [Fit(family, sources, _differences(sources, tensors)) for family, sources in layouts.items()]
    return min(fits, key=lambda fit: len(fit.differences))


def _differences(sources, tensors):
    """How named tensors differ from the names and shapes of `sources`: a text for each that does, in their order."""
    expected, found = {name: source.shape for source in sources.values() for name in source.names}, []
    for name, shape in expected.items():
        if name not in tensors:
            found.append(f"missing {name}")
        elif tuple(tensors[name].shape) != tuple(shape):
            found.append(f"{name} is {tuple(tensors[name].shape)}, not {tuple(shape)}")
        elif not tensors[name].is_floating_point():
            found.append(f"{name} is {tensors[name].dtype}, not a floating-point tensor")
    return found + [f"extra {name}" for name in tensors if name not in expected]


def contrast(theirs, ours):
    """The first setting in which two networks differ, dropout aside; "" when there is none."""
    for name, value in vars(ours).items():
        if name != "dropout" and value != getattr(theirs, name):
            return f"its network has {name} {getattr(theirs, name)}, the section {value}"
    return ""


def read(source):
    """A `Checkpoint` from a file, a diffusers folder, a name on the hub, or a published list or dict in memory.

    Raises InputError when it is none, is damaged, or could only be read by executing code in it.
    """
    if isinstance(source, Checkpoint):
        return source
    if not isinstance(source, (str, Path)):
        return _find_weights(source, "in memory", None)
    path = bundled(source) or Path(source)
    if not path.exists() and diffusers.is_hub_name(str(source)):
        path = diffusers.download(str(source))
    if path.is_dir():
        path = diffusers.weights_in(path)
    if not path.exists():
        raise InputError(f"{path}: no such file", "Sample.model_path")
    if not path.is_file():  # reading a pipe or a device would wait for ever
        raise InputError(f"{path}: not a regular file", "Sample.model_path")
    checkpoint = _read_shards(path) if is_index(path) else _read_file(path)
    config = path.with_name("config.json")
    if diffusers.is_weights(path) and config.is_file():
        checkpoint.settings = diffusers.settings_of(config)
        checkpoint.format += " of diffusers"
        if diffusers.is_ema(path):
            checkpoint.weights = "EMA"
    return checkpoint


def is_index(path):
    """Whether a file lists the files that the weights are in."""
    return ".index." in path.name and path.suffix == ".json"


def _read_shards(index):
    """The `Checkpoint` of weights that are cut into several files."""
    parts = [_read_file(path) for path in diffusers.shards_of(index)]
    tensors = {}
    for part in parts:
        if twice := tensors.keys() & part.tensors.keys():
            raise InputError(f"{part.path}: holds {min(twice)}, which another file of {index.name} holds, too")
        tensors |= part.tensors
    return Checkpoint(tensors, f"{parts[0].format} in {len(parts)} files", path=index)


def _read_file(path):
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(len(_OLD_FORMAT))
    if head[:4] == b"PK\x03\x04":
        stored = _check_zip(path)
        content = unpickle(path, mmap=True)
        if (claimed := _size(content)) != stored:
            raise InputError(f"{path}: damaged: its tensors claim {claimed:,} bytes, its entries hold {stored:,}")
        return _find_weights(content, "PyTorch file", path)
    if head == _OLD_FORMAT:
        return _find_weights(unpickle(path), "PyTorch file before 1.6", path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:  # may begin with a pickle's first byte, too
        return _read_safetensors(path)
    if head[:1] == b"\x80":
        return _read_edm(path)
    raise InputError(f"{path}: not a checkpoint (neither safetensors nor PyTorch), or its beginning is lost")


def _read_edm(path):
    network = persistence.read(path)
    settings = _settings_of(network.section, path)
    record = {"Model": network.section, "licence": "NVIDIA's under CC BY-NC-SA 4.0"}
    form = f"EDM pickle, {' of '.join(network.names)}, {record['licence']}"
    return Checkpoint(persistence.own_names(network.tensors), form, "EMA", path, settings, record)


def _read_safetensors(path):
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("record", "{}"))
            tensors, averaged = unwrapped({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged safetensors file: {first_line(error)}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}: damaged safetensors file: its record is not a mapping")
    settings = _settings_of(record["Model"], path) if record.get("Model") is not None else None
    form = "safetensors" + (f", licence: {printable(record['licence'])}" if record.get("licence") else "")
    return Checkpoint(
        tensors, form, record.get("weights") or ("EMA" if averaged else "not stated"), path, settings, record
    )


def _check_zip(path):
    """Refuse archives whose entries are not plain data in the file; returns the bytes that tensors have there."""
    size = path.stat().st_size
    try:
        entries = zipfile.ZipFile(path).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: damaged or cut short: {first_line(error)}") from None
    if (claimed := sum(entry.file_size for entry in entries)) > size:
        raise InputError(f"{path}: its entries claim {claimed:,} bytes, the file has {size:,}")
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise InputError(f"{path}: a TorchScript archive, which could only be read by executing code in it")
    if "data.pkl" not in names:
        raise InputError(f"{path}: a zip archive without PyTorch's data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(f"{path}: a compressed archive, which PyTorch does not write")
    return sum(entry.file_size for entry in entries if re.fullmatch(r"[^/]+/data/\d+", entry.filename))


def _size(content):
    """Bytes of the storages behind all tensors in nested containers; tensors that share one count once."""
    storages, seen, left = set(), set(), [content]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
        elif _is_plain(value):
            storages.add((value.untyped_storage().data_ptr(), value.untyped_storage().nbytes()))
    return sum(size for _, size in storages)


def unpickle(path, mmap=False):
    """What a PyTorch file holds, of tensors and plain containers alone. Raises InputError.

    mmap: tensors are read from the disk only when they are used; not for files of PyTorch before 1.6.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch says of damaged files is said below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle can end in any exception there is
        if isinstance(error, OSError) and error.filename:  # the file system's, not PyTorch's own
            raise
        asked = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        if isinstance(error, pickle.UnpicklingError) and asked:
            reason = f"could only be read by executing code in it ({asked.strip()})"
        else:
            reason = f"damaged: {first_line(error)}"
        raise InputError(f"{path}: {reason}") from None


def _find_weights(content, container, path):
    """The `Checkpoint` in what a file holds."""
    where, settings, record = path or container, None, {}
    match content:
        case {"model": model, "ema": {"shadow_params": [*shadow]}} if _is_state(model):
            kind, weights = "score-SDE training checkpoint", "EMA"
            # The EMA is a list in the order of the parameters, among which the buffer `sigmas` is not.
            names = [name for name in model if name not in _BUFFERS]
            if len(names) != len(shadow):
                raise InputError(f"{where}: its EMA has {len(shadow)} entries for {len(names)} parameters")
            tensors = dict(zip(names, shadow, strict=True))
        case {"model": _, "ema": tensors, **rest} if _is_state(tensors):
            kind, weights = "training checkpoint", "EMA"
            match rest:
                case {"experiment": {"Model": model} as record}:
                    settings = _settings_of(model, where)
            match record:
                case {"Train": {"ema": False}}:
                    weights = "raw"
        case dict() if wrapper := next((key for key in WRAPPERS if _is_state(content.get(key))), None):
            kind, weights, tensors = "training checkpoint", WRAPPERS[wrapper], content[wrapper]
        case [_, _, _, _, tensors] if _is_state(tensors):
            kind, weights = "DDIM training list", "EMA"
        case [tensors, _, *_] if _is_state(tensors):
            kind, weights = "training list of the released code", "raw"
        case tensors if _is_state(tensors):
            kind, weights = "state dict", "not stated"
        case _:
            raise InputError(f"{where}: holds no network's weights, but {_describe(content)}")
    if not all(_is_plain(value) for value in tensors.values()):
        raise InputError(f"{where}: its weights are not plain dense tensors")
    tensors = {name: value for name, value in tensors.items() if name not in _BUFFERS}
    tensors, averaged = unwrapped(tensors)
    weights = "EMA" if averaged else weights
    return Checkpoint(persistence.own_names(tensors), f"{container}, {kind}", weights, path, settings, record)


_BUFFERS = ("sigmas", "module.sigmas")  # of score-SDE's networks; nothing here uses it


def _is_state(value):
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(v, torch.Tensor) for name, v in value.items())
    )


def _is_plain(value):
    return isinstance(value, torch.Tensor) and not (
        value.is_nested or value.is_quantized or value.is_meta or value.layout != torch.strided
    )


def _settings_of(model, path):
    try:
        return settings_of(model)
    except (InputError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: its own Model section is damaged: {first_line(error)}") from None


def _describe(content):
    if isinstance(content, dict):
        names = [name if isinstance(name, str) else type(name).__name__ for name in content]
        return f"a dict of {', '.join(names[:5])}" if names else "an empty dict"
    return f"a {type(content).__name__}" + (f" of {len(content)}" if isinstance(content, (list, tuple)) else "")


def save(path, tensors, metadata):
    """Write this project's own format: safetensors with `metadata`, a dict, as JSON; whole or not at all.

    Under one key, since safetensors writes several in any order, and equal contents would not be equal files.
    """
    text = {"record": json.dumps(metadata)}
    with aside(path) as file:
        file.write_bytes(to_safetensors({name: value.contiguous() for name, value in tensors.items()}, text))


def sha256(path):
    """Hex digest of a file; of an index and the files that it lists, one after another."""
    digest = hashlib.sha256()
    for part in [path, *(diffusers.shards_of(path) if is_index(Path(path)) else [])]:
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
