"""EDM's pickles (NVlabs/edm), read without executing anything in them.

Such a file is a plain pickle of a dict; "ema" is the network. Each object in it is a record of EDM's
`torch_utils.persistence`: the source text of its class, which is never run here, the class's name, and the state of the
object. Everything that a pickle can name is replaced by an inert stand-in of this file, and what has none is refused.
"""

import io
import pickle
import pickletools
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from pndm.config.errors import InputError, first_line
from pndm.model.precondition import BETA_D, BETA_MIN, STEPS

REFUSED = "a plain pickle, which could only be read by executing code in it"
# Those opcodes of pickle that EDM's files consist of: containers, numbers, texts, and the names that `NAMES` replaces.
OPCODES = frozenset(
    {"PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
     "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
     "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
     "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
     "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"}
)  # fmt: skip
VERSION = 6  # of persistence records


class Stored(NamedTuple):
    """A tensor that is not made yet: bytes that torch.save wrote, and which part of them it is."""

    storage: bytes
    offset: int
    size: tuple
    stride: tuple

    def tensor(self):
        """The tensor, on the CPU. Raises ValueError where it does not lie within its storage."""
        try:
            content = torch.load(io.BytesIO(self.storage), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL (\S+)", str(error))
            raise pickle.UnpicklingError(f"a storage asks for {asked[1] if asked else 'more than numbers'}") from None
        if not isinstance(content, (torch.storage.TypedStorage, torch.UntypedStorage)):
            raise ValueError(f"a storage is {type(content).__name__}")
        numbers = [self.offset, *self.size, *self.stride]
        if len(self.size) != len(self.stride) or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
            raise ValueError("a tensor's shape is none")
        flat = torch.empty(0, dtype=content.dtype)
        flat.set_(content.untyped(), 0, (len(content),))
        count = torch.Size(self.size).numel()
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if count > len(flat) or (count and last >= len(flat)):
            raise ValueError("a tensor is larger than its storage")
        return flat.as_strided(self.size, self.stride, self.offset)


class _Inert:
    """No pickle can change it from inside."""

    __slots__ = ()

    def __setstate__(self, state):
        raise pickle.UnpicklingError(f"a {type(self).__name__} takes no state")


class Record(_Inert):
    """An object of a class that is named, not run. name: the class's; state: its attributes."""

    __slots__ = ("name", "state")

    def __init__(self, name, state):
        if not isinstance(name, str) or not isinstance(state, dict):
            raise pickle.UnpicklingError("a persistence record has no name or no state")
        self.name, self.state = name, state


class Module(Record):
    """A module of PyTorch itself: a container, of which the parts matter."""

    __slots__ = ()

    def __new__(cls, *args):
        made = super().__new__(cls)
        made.name, made.state = "", {}
        return made

    def __init__(self):
        pass

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module's state is not a dict")
        self.state = state


class Mapping(_Inert, dict):
    """OrderedDict and EDM's EasyDict."""

    __slots__ = ()


class Kind(_Inert):
    """numpy.dtype of a number, by its name; what a file says of its byte order is checked, not obeyed."""

    __slots__ = ("name",)

    def __init__(self, name, *_):
        self.name = name

    def __setstate__(self, state):
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|"):
            raise pickle.UnpicklingError("a numpy number is not little-endian")


class Call(_Inert):
    """A function of this file under a name in a pickle."""

    __slots__ = ("function",)

    def __init__(self, function):
        object.__setattr__(self, "function", function)

    def __call__(self, *args):
        return self.function(*args)


def _persistent(meta):
    version, kind = meta.get("version"), meta.get("type")
    if (version, kind) != (VERSION, "class"):
        raise pickle.UnpicklingError(f"a persistence record of type {kind!r:.40} and version {version!r:.40}")
    return Record(meta.get("class_name"), meta.get("state"))


def _bytes(data):
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("a storage is not bytes")
    return data


def _number(kind, data):
    lengths = {"f8": "float64", "f4": "float32", "i8": "int64", "i4": "int32", "b1": "bool"}
    dtype = lengths.get(kind.name) if isinstance(kind, Kind) else None
    if dtype is None or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy scalar is not a number")
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype), count=1).item()


NAMES = {
    "torch_utils.persistence._reconstruct_persistent_obj": Call(_persistent),
    "torch.storage._load_from_bytes": Call(_bytes),
    "torch._utils._rebuild_tensor_v2": Call(
        lambda storage, offset, size, stride, *_: Stored(storage, offset, size, stride)
    ),
    "torch._utils._rebuild_parameter": Call(lambda data, *_: data),
    "torch.nn.modules.container.ModuleDict": Module,
    "torch.nn.modules.container.ModuleList": Module,
    "torch.nn.modules.container.Sequential": Module,
    "collections.OrderedDict": Mapping,
    "dnnlib.util.EasyDict": Mapping,
    "builtins.set": set,
    "numpy.dtype": Kind,
    "numpy.core.multiarray.scalar": Call(_number),
    "numpy._core.multiarray.scalar": Call(_number),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module, name):
        if f"{module}.{name}" not in NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return NAMES[f"{module}.{name}"]


class Network(NamedTuple):
    """A network in an EDM pickle: the names of its classes, its `Model` section (a dict), its tensors by name."""

    names: tuple
    section: dict
    tensors: dict


def read(path: Path):
    """The `Network` in an EDM pickle. Raises InputError that says what else the file is, or what it asks for."""
    try:
        with path.open("rb") as file:
            _check_opcodes(file, path.stat().st_size)
            file.seek(0)
            content = _Reader(file).load()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PyTorch's, of the storages that such files consist of
            return _network(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can end in any exception there is
        if isinstance(error, OSError) and error.filename:
            raise
        reason = first_line(error)
        refused = isinstance(error, pickle.UnpicklingError) and "asks for" in reason
        raise InputError(f"{path}: {REFUSED} ({reason})" if refused else f"{path}: damaged pickle: {reason}") from None


def _check_opcodes(file, size):
    """Raise UnpicklingError for what no EDM file consists of, before anything is loaded."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name not in OPCODES:
            raise pickle.UnpicklingError(f"it asks for pickle's {opcode.name}")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and argument > size:  # which would take memory
            raise pickle.UnpicklingError(f"entry {argument:,} of a memory in a file of {size:,} bytes")


def _network(content):
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, Record):
        raise InputError("a plain pickle without a network of EDM (its entry ema)")
    inner = _part(network, "_modules").get("model")
    if not isinstance(inner, Record):
        raise InputError(f"{network.name} holds no network called model")
    if network.state.get("_init_args"):
        raise InputError(f"{network.name} was made with arguments that have no names")
    tensors = {}
    _collect(inner, "", tensors, set())
    section = section_of(network.name, inner.name, dict(_part(network, "_init_kwargs")))
    return Network((network.name, inner.name), section, tensors)


def _part(record, name):
    part = record.state.get(name)
    if not isinstance(part, dict) or not all(isinstance(key, str) for key in part):
        raise InputError(f"{record.name or 'a module'} has no {name}")
    return part


def _collect(record, prefix, tensors, seen):
    """Put the tensors of a record and of its parts into `tensors`, by their names."""
    if id(record) in seen:
        raise InputError(f"{prefix} stands in two places")
    seen.add(id(record))
    for group in ("_parameters", "_buffers"):
        for name, value in _part(record, group).items():
            if isinstance(value, Stored):
                tensors[prefix + name] = value.tensor()
            elif value is not None:
                raise InputError(f"{prefix + name} is not a tensor")
    for name, part in _part(record, "_modules").items():
        if isinstance(part, Record):
            _collect(part, f"{prefix}{name}.", tensors, seen)
        elif part is not None:
            raise InputError(f"{prefix + name} is not a module")


ARCHITECTURES = {
    ("SongUNet", "positional", 1, "standard", "standard", (1, 1)): "DDPM++",
    ("SongUNet", "fourier", 2, "residual", "standard", (1, 3, 3, 1)): "NCSN++",
    ("DhariwalUNet", "positional", 1, "standard", "standard", (1, 1)): "ADM",
}
DEFAULTS = {  # of EDM's arguments
    "SongUNet": {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]},
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}
FIXED = {"channel_mult_emb": 4, "beta_d": BETA_D, "beta_min": BETA_MIN, "M": STEPS}
OURS = {"image_size": "img_resolution", "in_channels": "img_channels", "labels": "label_dim"}
# What changes no image: how it was trained, and the range of σ that EDM's sampler takes by default.
ASIDE = {"augment_dim", "label_dropout", "use_fp16", "sigma_min", "sigma_max", "epsilon_t", "model_type"}


def section_of(outer, inner, given):
    """The `Model` section of a network: the names of its two classes and their arguments (a dict, which is used up).

    Raises InputError naming what the one UNet does not have.
    """
    if outer not in (names := ("EDMPrecond", "VPPrecond", "VEPrecond")):
        raise InputError(f"its preconditioning is {outer!r}; it is one of {', '.join(names)}")
    if inner not in DEFAULTS:
        raise InputError(f"its network is {inner!r}; it is one of {', '.join(DEFAULTS)}")
    for name, value in FIXED.items():
        if given.pop(name, value) != value:
            raise InputError(f"its {name} is not {value}")
    form = {"embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard",
            "decoder_type": "standard", "resample_filter": [1, 1]}  # fmt: skip
    form = {name: given.pop(name, default) for name, default in form.items()}
    key = (inner, *(tuple(value) if isinstance(value, list) else value for value in form.values()))
    if repr(key) not in map(repr, ARCHITECTURES):
        raise InputError(f"{inner} with {', '.join(f'{k} {v!r:.40}' for k, v in form.items())} is not known here")
    section = {"struc": "EDM", "architecture": ARCHITECTURES[key], "preconditioning": outer.removesuffix("Precond")}
    section |= {name: given.pop(theirs) for name, theirs in OURS.items() if theirs in given}
    section |= {name: given.pop(name, default) for name, default in DEFAULTS[inner].items()}
    section |= {"dropout": given.pop("dropout", 0.1), "sigma_data": given.pop("sigma_data", 0.5)}
    if left := given.keys() - ASIDE:
        raise InputError(f"its argument {sorted(left)[0]!r} is not known here")
    return section


def own_names(tensors):
    """Named tensors of an EDM network with the number of the level for its resolution: enc.32x32_block0 → enc.0.block0.

    What sampling does not use is left out: filters that are constants, and the embedding of augmentations. Other
    networks' tensors are returned as they are.
    """
    sized = re.compile(r"(?:model\.)?(enc|dec)\.(\d{1,6})x\2_(.+)")
    sizes = [int(found[2]) for found in map(sized.fullmatch, tensors) if found]
    if not sizes:
        return tensors
    made = {}
    for name, value in tensors.items():
        found = sized.fullmatch(name)
        if name.endswith("resample_filter") or "map_augment." in name:
            continue
        level = (max(sizes) // max(1, int(found[2]))).bit_length() - 1 if found else 0
        made[f"{found[1]}.{level}.{found[3]}" if found else name.removeprefix("model.")] = value
    return made
