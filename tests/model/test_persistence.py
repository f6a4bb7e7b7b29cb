"""Hostile and damaged pickles that look like EDM's: each ends in one line, and nothing in them is executed."""

import builtins
import io
import os
import pickle
import struct
import subprocess
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from data.edm import Persistent, install, snapshot, state, tree, write

from pndm.config.errors import InputError
from pndm.model import persistence
from pndm.model.checkpoint import read

NAME = "vp_ddpmpp"
MARK = "executed"  # the file that hostile pickles would make


class Command:
    """A call that a pickle asks for."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


class Stateful(Command):
    """A call, and a state for what it returns."""

    def __reduce__(self):
        return self.call, self.arguments[:-1], self.arguments[-1]


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module, name):
    """The opcodes that put the object of a name on the stack."""
    return text(module) + text(name) + b"\x93"


def raw(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


def changed(**more):
    """EDM's snapshot with other entries."""
    return pickle.dumps(snapshot(NAME) | more)


def with_model(model):
    return changed(ema=Persistent("VPPrecond", state(modules={"model": model}, _init_args=(), _init_kwargs={})))


def storage(content):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def tensor(data, offset, size, stride):
    """A network with one tensor, as bytes of a storage and a shape."""
    made = Command(getattr(torch.storage, "_load_from_bytes"), data)  # noqa: B009
    part = Command(torch._utils._rebuild_tensor_v2, made, offset, size, stride, False, {})
    return with_model(Persistent("SongUNet", state(parameters={"a": part}, _init_args=(), _init_kwargs={})))


def arguments(**given):
    return pickle.dumps(snapshot(NAME, **given))


def deep(levels=100_000):
    return raw(b"]" * levels, b"a" * (levels - 1))


def shared(levels=60):
    """A module that holds one module under two names, and so on: 2^60 of them."""
    part = Persistent("UNetBlock", state())
    for _ in range(levels):
        part = Persistent("UNetBlock", state(modules={"a": part, "b": part}))
    return with_model(part)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the kind of storage that EDM's files consist of
    FOUR = storage(torch.zeros(4).storage())
HOSTILE = {
    "os.system": lambda: pickle.dumps(Command(os.system, f"touch {MARK}")),
    "os.system in ema": lambda: changed(ema=Command(os.system, f"touch {MARK}")),
    "os.system in an argument": lambda: arguments(dropout=Command(os.system, f"touch {MARK}")),
    "subprocess.Popen": lambda: changed(augment_pipe=Command(subprocess.Popen, ["touch", MARK])),
    "eval": lambda: changed(augment_pipe=Command(eval, f"open('{MARK}', 'w')")),
    "exec": lambda: changed(augment_pipe=Command(exec, f"open('{MARK}', 'w')")),
    "__import__": lambda: changed(augment_pipe=Command(builtins.__import__, "antigravity")),
    "open": lambda: changed(augment_pipe=Command(open, MARK, "w")),
    "getattr": lambda: changed(augment_pipe=Command(getattr, "a", "upper")),
    "torch.load": lambda: changed(augment_pipe=Command(torch.load, MARK)),
    "np.load": lambda: changed(augment_pipe=Command(np.load, MARK)),
    "EDM's own compiler": lambda: raw(named("torch_utils.persistence", "_src_to_module"), text("1 / 0"), b"\x85R"),
    "a name behind a name": lambda: raw(named("torch._utils", "_rebuild_tensor_v2.__globals__")),
    "a name put together": lambda: raw(named("posix", "system"), text(f"touch {MARK}"), b"\x85R"),
    "an instance of the old kind": lambda: b"\x80\x04(S'touch executed'\nios\nsystem\n.",
    "an object from outside": lambda: raw(text("x"), b"Q"),
    "an extension": lambda: raw(b"\x82\x01"),
    "a huge memory": lambda: raw(b"N", b"r" + struct.pack("<I", 2**31 - 1)),
    "a state for a function": lambda: raw(
        named("torch._utils", "_rebuild_parameter"), b"}", text("function"), named("builtins", "set"), b"sb"
    ),
    "a state for a class": lambda: raw(named("collections", "OrderedDict"), b"}", text("get"), text("x"), b"sb"),
    "a state for a mapping": lambda: raw(named("dnnlib.util", "EasyDict"), b")\x81}", text("get"), text("x"), b"sb"),
    "code in a storage": lambda: tensor(storage(Command(os.system, f"touch {MARK}")), 0, (1,), (1,)),
    "a storage that is a dict": lambda: tensor(storage({"a": 1}), 0, (1,), (1,)),
    "a storage that is a number": lambda: raw(named("torch.storage", "_load_from_bytes"), b"J\x00\x00\x00\x40\x85R"),
    "a tensor beyond its storage": lambda: tensor(FOUR, 2, (3,), (1,)),
    "a tensor of one number repeated": lambda: tensor(FOUR, 0, (2**30,), (0,)),
    "a tensor of negative size": lambda: tensor(FOUR, 0, (-1,), (1,)),
    "an array of objects": lambda: changed(
        ema=Persistent("VPPrecond", {"a": np.array([Command(os.system, f"touch {MARK}")], dtype=object)})
    ),
    "version 5": lambda: changed(ema=Persistent("VPPrecond", {}, version=5)),
    "type module": lambda: changed(ema=Persistent("VPPrecond", {}, type="module")),
    "a record without a state": lambda: changed(ema=Persistent("VPPrecond", None)),
    "a record of a list": lambda: raw(named("torch_utils.persistence", "_reconstruct_persistent_obj"), b"]\x85R"),
    "no ema": lambda: pickle.dumps({"model": 1}),
    "another preconditioning": lambda: changed(ema=Persistent("iDDPMPrecond", snapshot(NAME)["ema"].meta["state"])),
    "another network": lambda: with_model(Persistent("Attacker", tree({}) | {"_init_args": (), "_init_kwargs": {}})),
    "another encoder": lambda: arguments(encoder_type="skip"),
    "another embedding": lambda: arguments(channel_mult_emb=2),
    "an unknown argument": lambda: arguments(command=f"touch {MARK}"),
    "a size that is a text": lambda: arguments(model_channels="many"),
    "a size that is huge": lambda: arguments(model_channels=2**40),
    "codes for the terminal": lambda: changed(
        ema=Persistent("\x1b[2J\nVPPrecond", snapshot(NAME)["ema"].meta["state"])
    ),
    "nested for ever": deep,
    "modules without end": shared,
    "cut": lambda: changed()[:-100],
    "nothing behind the head": lambda: b"\x80\x04",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_refused_in_one_line(kind, tmp_path, monkeypatch):
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "network.pkl"
    file.write_bytes(HOSTILE[kind]())
    with pytest.raises(InputError) as error:
        read(file)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert len(message) < 500
    assert not (tmp_path / MARK).exists()
    names = ("os.system", "Popen", "eval", "exec", "__import__", "getattr", "_src_to_module", "_rebuild_tensor_v2.__gl")
    assert not any(kind == name or name in kind for name in names) or "it asks for" in message


def test_a_pickle_cannot_change_the_reader(tmp_path, monkeypatch):
    """After all of them the names of the reader are what they were, and a good file is read."""
    install(monkeypatch)
    before = {name: (value, dict(vars(value)) if isinstance(value, type) else None) for name, value in names()}
    for kind, content in HOSTILE.items():
        if "state" in kind:
            (tmp_path / "bad.pkl").write_bytes(content())
            with pytest.raises(InputError):
                read(tmp_path / "bad.pkl")
    assert before == {name: (value, dict(vars(value)) if isinstance(value, type) else None) for name, value in names()}
    assert read(write(tmp_path / "good.pkl", snapshot(NAME))).weights == "EMA"


def names():
    return [(name, value) for name, value in persistence.NAMES.items() if value is not set]


@pytest.mark.slow
def test_any_byte_may_be_wrong(tmp_path, monkeypatch):
    """A changed byte ends in the network with other weights, or in one line."""
    install(monkeypatch)
    content, rng = pickle.dumps(snapshot(NAME)), np.random.default_rng(0)
    short = content.rfind(b"_init_kwargs")
    for place in [*rng.integers(0, 3000, 60), *rng.integers(short - 500, len(content), 60)]:
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        (tmp_path / "a.pkl").write_bytes(damaged)
        with suppress(InputError):
            read(tmp_path / "a.pkl")
