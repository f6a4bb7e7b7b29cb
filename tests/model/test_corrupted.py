"""Damaged and hostile files: each ends in one line, and nothing in them is ever run."""

import collections
import io
import json
import os
import pickle
import random
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from helpers import published_section, published_weights
from safetensors.torch import save as to_safetensors

from pndm.config.errors import InputError
from pndm.model import load_model
from pndm.model.checkpoint import read

NAME = "iddpm_small"


def to_torch(content, old=False):
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def rewritten(data, change, compression=zipfile.ZIP_STORED):
    """A zip archive whose entries went through change(name, content) → content."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return stream.getvalue()


def claiming(data, entry, size):
    """A zip archive of which one entry's sizes in the central directory are false."""
    at = -1
    for _ in range(entry + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    return data[: at + 20] + struct.pack("<II", size, size) + data[at + 28 :]


class Hostile:
    """Unpickled by executing: it makes a folder."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def variants(tensors, target):
    """Pairs of what is wrong with it and a file's content, made from a good state dict; target: a path to attack."""
    rng = random.Random(0)
    new, old, safe = to_torch(tensors), to_torch(tensors, old=True), to_safetensors(tensors)
    names = list(tensors)

    for kind, data in (("zip", new), ("old", old), ("safetensors", safe)):
        for _ in range(20):
            cut = rng.randrange(len(data))
            yield f"{kind} cut at {cut}", data[:cut]
        for size in (0, 1, 8, 16):
            yield f"{kind} cut at {size}", data[:size]

    for i in range(20):
        name = rng.choice(names)
        dtype = torch.int64 if i % 2 else rng.choice([torch.complex64, torch.bool])
        wrong = {
            "missing": {n: v for n, v in tensors.items() if n != name},
            "extra": tensors | {f"{name}.again\n": torch.zeros(3)},
            "shape": tensors | {name: torch.zeros(*tensors[name].shape, 2)},
            "dtype": tensors | {name: tensors[name].to(dtype)},
        }
        for what, content in wrong.items():
            yield f"{what} {name}", to_safetensors(content) if i % 2 else to_torch(content)
    yield "mixed prefixes", to_torch(tensors | {f"module.{names[0]}": tensors[names[0]]})
    yield "no tensors", to_torch({})
    yield "tensors without names", to_torch(dict(enumerate(tensors.values())))
    yield "only a step", to_torch({"step": 7})
    yield "a list of numbers", to_torch([1, 2, 3, 4, 5])
    yield "one tensor", to_torch(torch.zeros(3))
    yield "sparse", to_torch(tensors | {names[0]: tensors[names[0]].to_sparse()})
    yield "without data", to_torch(tensors | {names[0]: tensors[names[0]].to("meta")})
    yield "short EMA", to_torch({"model": tensors, "ema": {"shadow_params": list(tensors.values())[1:]}})
    yield "EMA of numbers", to_torch({"model": tensors, "ema": {"shadow_params": [0.0] * len(tensors)}})
    yield "claims a size it has not", to_torch({n: torch.zeros(1).expand(v.shape) for n, v in tensors.items()})[:-40]
    loop = []
    loop.append(loop)
    yield "holds itself", to_torch(loop)

    entries = new.count(b"PK\x01\x02")
    for entry in rng.sample(range(entries), 20):
        yield f"entry {entry} claims 4 GB", claiming(new, entry, 0xFFFFFFF0)
    for entry in rng.sample(range(entries), 5):
        yield f"entry {entry} claims to be a little more", claiming(new, entry, len(new))
    stored = [name for name in zipfile.ZipFile(io.BytesIO(new)).namelist() if re.search(r"/data/\d+$", name)]
    for name in rng.sample(stored, 10):
        yield f"{name} is short", rewritten(new, lambda n, content, name=name: content[:-4] if n == name else content)
    for cut in rng.sample(range(2, 2000), 15):
        yield f"pickle cut at {cut}", rewritten(new, lambda n, c, cut=cut: c[:cut] if n.endswith("data.pkl") else c)
    yield "compressed", rewritten(new, lambda n, c: c, zipfile.ZIP_DEFLATED)
    yield "zip bomb", rewritten(new, lambda n, c: bytes(10**7), zipfile.ZIP_DEFLATED)
    yield "zip of something else", rewritten(new, lambda n, c: c).replace(b"data.pkl", b"data.txt")

    header = len(safe) - sum(4 * v.numel() for v in tensors.values()) - 8
    for _ in range(10):
        at = 8 + rng.randrange(header // 2)
        yield f"safetensors header damaged at {at}", safe[:at] + b"\xff\x00}{" + safe[at + 4 :]
    yield "safetensors header of 2^60 bytes", struct.pack("<Q", 1 << 60) + safe[8:]
    for model in ("{", '"text"', '{"struc": "DDIM"}', "[1]", "[" * 10_000):
        yield f"Model section {model[:20]}", to_safetensors(tensors, {"record": f'{{"Model": {model}}}'})

    commands = [
        Hostile(os.mkdir, target),
        Hostile(os.system, f"mkdir {target}"),
        Hostile(eval, f"__import__('os').mkdir({target!r})"),
        Hostile(exec, f"import os; os.mkdir({target!r})"),
        Hostile(__import__, "os"),
        Hostile(pickle.loads, pickle.dumps(Hostile(os.mkdir, target))),
    ]
    for command in commands:
        for place in (command, {**tensors, "extra": command}, {"model": tensors, "ema": command}, [tensors, command]):
            yield f"hostile {command.call.__name__}", to_torch(place)
            yield f"hostile {command.call.__name__}, old", to_torch(place, old=True)
        yield f"hostile {command.call.__name__}, plain pickle", pickle.dumps(command)
    yield "plain pickle of arrays", pickle.dumps({name: np.zeros(3) for name in names})
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    yield "TorchScript", script.getvalue()
    yield "text", b"<html>404 not found</html>" * 100
    yield "zeros", bytes(10_000)
    yield "noise", rng.randbytes(10_000)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of TorchScript and sparse tensors
def test_each_ends_in_one_line(tmp_path):
    tensors = collections.OrderedDict(published_weights(NAME))
    section, target, file = published_section(NAME), tmp_path / "ran", tmp_path / "file"
    file.write_bytes(to_torch(tensors))
    load_model(section, file)
    seen = collections.Counter()
    for what, content in variants(dict(tensors), str(target)):
        file.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_model(section, file)
            pytest.fail(f"loaded: {what}")
        message = str(caught.value)
        assert message.startswith(str(file)) and len(message) < 500, what
        assert "executing" in message or not what.startswith(("hostile", "plain", "TorchScript")), (what, message)
        assert not target.exists(), what
        seen[what.split()[0]] += 1
    assert seen.total() >= 200, seen


def test_hostile_files_are_hostile(tmp_path):
    """The attacks of the test above do run where pickles are trusted."""
    target = tmp_path / "ran"
    pickle.loads(pickle.dumps(Hostile(os.mkdir, str(target))))
    assert target.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_flipped_bits_do_not_crash(tmp_path):
    """A file with some bit flipped outside the weights loads, or ends in a line; nothing else."""
    rng, good, file = random.Random(0), to_torch(published_weights(NAME)), tmp_path / "file"
    safe = to_safetensors(published_weights(NAME))
    directory = good.index(b"PK\x01\x02")
    places = [(good, rng.randrange(600)) for _ in range(40)] + [(safe, rng.randrange(4000)) for _ in range(40)]
    places += [(good, rng.randrange(600, 9000)) for _ in range(60)]
    places += [(good, rng.randrange(directory, len(good))) for _ in range(60)]
    ends = collections.Counter()
    for data, at in places:
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        try:
            load_model(published_section(NAME), file)
            ends["loaded"] += 1
        except InputError:
            ends["refused"] += 1
    assert min(ends["loaded"], ends["refused"]) > 10, ends


def test_wrong_paths(tmp_path):
    for path, message in ((tmp_path / "none", "no such file"), (tmp_path, "no diffusers model in this folder")):
        with pytest.raises(InputError, match=message):
            load_model(published_section(NAME), path)
    with pytest.raises(InputError, match=r"in memory: holds no network's weights, but a dict of 1, a$"):
        load_model(published_section(NAME), json.loads('{"1": 2, "a": 3}'))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_read(tmp_path):
    """A pipe that nobody writes to would be waited for without end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match=r"^[^ ]+: not a regular file$"):
            load_model(published_section(NAME), path)


def test_codes_for_the_terminal_are_not_kept(tmp_path):
    """What a file says of itself is printed by others: its strings come without escapes."""
    tensors, file = published_weights(NAME), tmp_path / "file"
    record = {"weights": "EMA\x1b[2J\n", "Dataset": {"path\x1b]0;x\x07": ["a\rb", 1, None]}}
    file.write_bytes(to_safetensors(tensors, {"record": json.dumps(record)}))
    source = read(file)
    assert source.weights == "EMA [2J "
    assert source.record == {"weights": "EMA [2J ", "Dataset": {"path ]0;x ": ["a b", 1, None]}}


def endless():
    loop = []
    loop.append(loop)
    return loop


def nested(depth):
    inner = []
    for _ in range(depth):
        inner = [inner]
    return inner


VALUES = {
    "5,000 hexadecimal digits": 16**5000,
    "100 hexadecimal digits": -(16**100),
    "holds itself": endless(),
    "100,000 lists": nested(100_000),
    "not a number": float("nan"),
    "a long text": "x" * 10**5,
}


@pytest.mark.parametrize("what", VALUES)
@pytest.mark.parametrize("key", ["ch", "another"])
def test_values_that_cannot_be_shown(tmp_path, key, what):
    """In the record of a training file; each ends in one line, whatever it is that cannot be put in words."""
    tensors, file = published_weights(NAME), tmp_path / "file"
    model = published_section("ddim_small") | {key: VALUES[what]}
    content = {"model": tensors, "ema": tensors, "experiment": {"Model": model}}
    try:
        file.write_bytes(to_torch(content))
    except RecursionError:
        pytest.skip("it cannot be written either")
    with pytest.raises(InputError, match=r"damaged|could only be read by executing code") as caught:
        read(file)
    message = str(caught.value)
    assert message.startswith(str(file)) and len(message) < 500


@pytest.mark.parametrize(
    "record",
    ["[" * 100_000, "1" * 5000, f'{{"Model": {"1" * 5000}}}', '"text"', "[1]"],
    ids=["brackets", "digits", "digits in a mapping", "a text", "a list"],
)
def test_records_that_are_none(tmp_path, record):
    file = tmp_path / "file"
    file.write_bytes(to_safetensors(published_weights(NAME), {"record": record}))
    with pytest.raises(InputError, match="damaged safetensors file"):
        read(file)
