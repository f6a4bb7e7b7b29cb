"""The manifest of published files: config/published.yml, and a temp/published.yml of one's own over it.

It says what each file is and where it comes from. Nothing here downloads one: `runner/fetch.py` does.
"""

import os
import re
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from pndm.config.errors import InputError
from pndm.config.keys import Contradiction, Section, key, needed, resembling
from pndm.config.load import MANIFEST, checked, read

TEMP = Path("temp")
OWN = TEMP / "published.yml"
ADDRESS = r"https?://[^\s/]+/\S*|drive:[\w-]+(/\S+)?|hub:[\w-]+/[\w.-]+"
HASHES = {"md5": 32, "sha256": 64}  # digits of a digest
_reason: ContextVar[str] = ContextVar("reason", default="")
HOSTS = {"drive": "Google Drive", "hub": "the Hugging Face hub"}


def _address(text):
    if not re.fullmatch(ADDRESS, text):
        raise ValueError("an address is https://…, drive:ID, drive:FOLDER/NAME or hub:OWNER/NAME")
    return text


def _below(text):
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or not text.isprintable():
        raise ValueError("it must be FOLDER/NAME, below temp/")
    return text


def _hash(text):
    kind, _, digest = text.lower().partition(":")
    if len(digest) != HASHES.get(kind) or not re.fullmatch("[0-9a-f]+", digest):
        raise ValueError("a hash is md5: or sha256: and its hexadecimal digits")
    return f"{kind}:{digest}"


Address = Annotated[str, AfterValidator(_address)]


class Published(Section):
    """One published file. `name` is its key in the manifest."""

    name: str = needed("its name")
    what: Literal["network", "statistics", "features"] = needed("what it is")
    of: str = needed("of which data")
    weights: Literal["EMA", "raw", "not stated"] = key("not stated", "of a network: which weights")
    by: str = needed("who trained or computed it")
    licence: str = needed("its licence")
    path: Annotated[str, AfterValidator(_below)] | None = key(None, "where it goes below temp/; None: the hub's cache")
    size: int | None = key(None, "its bytes, where they are known", ge=1)
    megabytes: int | None = key(None, "about how many megabytes it has", ge=1)
    hash: Annotated[str, AfterValidator(_hash)] | None = key(None, "md5:… or sha256:…, where it is published")
    addresses: list[Address] = needed("where it can be had, the best first", min_length=1)
    same: list[str] = key([], "entries that hold the same network")
    experiments: list[str] = key([], "experiments of config/ that want it")
    tables: list[str] = key([], "tables of config/tables/ that want it")
    source: str = needed("where all this was read")
    note: str = key("", "what else to know, what nobody has verified")

    @model_validator(mode="after")
    def _consistent(self):
        if self.path is None and not self.hub:
            raise Contradiction("path is missing: where it goes below temp/", "path")
        if self.path and any(address.startswith("hub:") for address in self.addresses):
            raise Contradiction("a model of the hub stays in the hub's cache: leave out path", "path")
        return self

    @property
    def hub(self):
        """OWNER/NAME on the hub; "" where it is not from there."""
        return self.addresses[0].removeprefix("hub:") if self.addresses[0].startswith("hub:") else ""

    @property
    def file(self):
        """Its path, relative to the working folder; None where it stays in the hub's cache."""
        return None if self.path is None else TEMP / self.path

    @property
    def place(self):
        """Where it lies, for a message."""
        return str(self.file or f"{self.hub} in the hub's cache")

    @property
    def bytes(self):
        """Its size, estimated where it is not known; 0 where it cannot be."""
        return self.size or (self.megabytes or 0) * 10**6

    @property
    def weight(self):
        """Its size for a person."""
        if self.size:
            return f"{self.size / 1e6:,.0f} MB"
        return f"about {self.megabytes:,} MB" if self.megabytes else "file of unknown size"

    @property
    def hosts(self):
        """Whose machines have it, for a message."""
        return ", ".join(dict.fromkeys(map(host, self.addresses)))


def host(address):
    """Whose machine an address is of, for a message."""
    return HOSTS.get(address.partition(":")[0]) or address.split("/")[2]


def link(address):
    """An address for a person with a browser."""
    kind, _, rest = address.partition(":")
    folder, _, name = rest.partition("/")
    if kind == "drive":
        return f"https://drive.google.com/{f'drive/folders/{folder} ({name})' if name else f'file/d/{folder}'}"
    return f"https://huggingface.co/{rest}" if kind == "hub" else address


def manifest():
    """Name → `Published`, of all that is known. Raises InputError where temp/published.yml is wrong."""
    return _manifest(MANIFEST) | (_manifest.__wrapped__(OWN) if OWN.is_file() else {})


@lru_cache(1)
def _manifest(path):
    found = {}
    for name, entry in read(path, "a manifest is a mapping of names to what is published under them").items():
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {name} is {entry!r}; it must be a mapping of keys")
        try:
            found[str(name)] = checked(Published.model_validate, {**entry, "name": str(name)})
        except InputError as error:
            raise InputError(f"{path}: {name}: {error}") from None
    return found


def find(text):
    """The `Published` of that name, or that belongs at that path; None where there is none."""
    known = manifest()
    return known.get(str(text)) or next((entry for entry in known.values() if entry.file == Path(text)), None)


def absent(text):
    """The `Published` that belongs at the path `text`, where nothing is; None for a name, and where there is none."""
    entry = find(text)
    return entry if entry and entry.name != str(text) and not Path(text).exists() else None


def named(name):
    """The `Published` of that name. Raises InputError."""
    known = manifest()
    if name not in known:
        more = resembling(name, known) or "; config/published.yml lists what is"
        raise InputError(f"nothing is published as {name}{more}", "paths")
    return known[name]


def of_hub(name):
    """The `Published` that a name on the hub is, of which nothing else is known."""
    known = {"of": "data that its card names", "by": "whom its card names", "licence": "see its card"}
    return Published(name=name, what="network", addresses=[f"hub:{name}"], source="the hub", **known)


def same_network(entry):
    """`entry`, then the entries that hold the same network."""
    known = manifest()
    return [entry, *(known[name] for name in entry.same if name in known)]


def offline():
    """Why nothing may be downloaded: --offline or HF_HUB_OFFLINE, which the hub reads, or `only_here`; else ""."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "offline"
    return _reason.get()


@contextmanager
def only_here(reason):
    """While inside, nothing is downloaded, and messages give this reason."""
    token = _reason.set(reason)
    try:
        yield
    finally:
        _reason.reset(token)
