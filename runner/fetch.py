"""Published files by name: found where they are, else downloaded, verified, and put in their place when they are whole.

    python main.py --runner fetch ema_cifar10
    pndm.fetch("ema_cifar10")  # its path

pooch downloads what has a plain address, gdown what is on Google Drive, huggingface_hub what is on the hub. Each is
imported when a download begins. Nothing that is downloaded is executed or unpacked here.
"""

import contextlib
import errno
import sys
from glob import escape
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from pndm.config import published
from pndm.config.errors import InputError
from pndm.config.files import alone, aside, made
from pndm.model import diffusers
from pndm.runner.servers import Failed, drive, http, size_of

LIBRARIES = {"drive": "gdown", "hub": "huggingface_hub"}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def fetch(name: str) -> Path:
    """The path of the published file `name`, a name of config/published.yml; it is downloaded if it is not there.

    Of a name on the hub, the folder in the hub's cache. The file appears whole or not at all: what was cut is kept
    beside it and resumed by the next call. Size and hash are verified; the sha256 of the first download is kept
    in NAME.sha256, and a later one must have the same. Two processes that call this at once download it once.
    Raises InputError, in one line, when it cannot be had: why each address failed, and where to put the file by hand.

        >>> from pndm import InputError, fetch
        >>> try:
        ...     path = fetch("my_network")
        ... except InputError as error:
        ...     print(error)
        nothing is published as my_network; config/published.yml lists what is
    """
    return provide(published.named(name))


def have(text, key):
    """The path that stands for `text`: itself where it exists, else the published file of that name or place.

    That is downloaded where it is not there. None where nothing is published as `text`. Raises InputError about `key`.
    """
    if Path(text).exists():
        return Path(text)
    try:
        entry = published.find(text)
        return entry and provide(entry)
    except InputError as error:
        raise InputError(error, key) from None


def held(entry):
    """The file of an entry, or of one that holds the same network, or the hub's folder; None where none is there."""
    for other in published.same_network(entry):
        if other.file is None:
            with contextlib.suppress(InputError), published.only_here("only looked for"):
                return diffusers.download(other.hub)
        elif other.file.is_file():
            return other.file
    return None


def refuse_place(given, key, flag=""):
    """Raise InputError, about `key`, where a published file's place is given by hand and its network is not here.

    flag: what stands before a name that would be downloaded, for the message.
    """
    if (entry := published.absent(given)) and not held(entry):
        raise InputError(f"no file {given}; {flag}{entry.name}, or --runner fetch {entry.name}, downloads it", key)


def sources(entry):
    """(entry, address) of all that `provide` would try, in this order: where a hash is published first."""
    entries = sorted(published.same_network(entry), key=lambda other: other.hash is None)
    return [(other, address) for other in entries for address in other.addresses]


def obstacle(address):
    """Why nothing can be downloaded from an address on this machine; "" where something may be."""
    if why := published.offline():
        return why
    library = LIBRARIES.get(address.partition(":")[0], "pooch")
    return "" if find_spec(library) else f"it needs {library}: pip install {library}"


def links(entry):
    """Where a person finds the file of an entry, for a message."""
    return " or ".join(published.link(address) for _, address in sources(entry))


def provide(entry):
    """The path of a published file, downloaded if need be. Raises InputError."""
    if found := held(entry):
        return found
    reasons = []
    for other, address in sources(entry):
        try:
            if why := obstacle(address):
                raise Failed(why)
            return download(other, address)
        except Failed as error:
            reasons.append((str(error), address))
    where = f"put it at {entry.file}" if entry.file else "set HF_HOME to a cache that has it"
    raise InputError(f"{entry.name} could not be downloaded ({_listed(reasons)}); {where}, from {links(entry)}")


def obstacles(entry):
    """Why an entry cannot be downloaded on this machine, for a message."""
    return _listed([(obstacle(address), address) for _, address in sources(entry)])


def _listed(reasons):
    """Reasons with the hosts that they are true of. reasons: pairs of a reason and an address."""
    hosts = {}
    for reason, address in reasons:
        hosts.setdefault(reason, {})[published.host(address)] = None
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in hosts.items())


def verify(entry):
    """Raise InputError if a file of an entry, or of one with the same network, is here and not what it was."""
    for other in published.same_network(entry):
        if other.file and other.file.is_file() and (wrong := complaint(other)):
            raise InputError(f"{other.file}: {wrong}; delete it, and --runner fetch {other.name} downloads it again")


def download(entry, address):
    """Download an entry from one of its addresses; returns its path. Raises Failed, and OSError of a full disk."""
    if entry.file is None:
        announce(entry, address)
        try:
            return diffusers.download(entry.hub)
        except InputError as error:
            raise Failed(str(error)) from None
    file = entry.file
    with made(file.parent), alone(file.parent):  # another process may have downloaded it meanwhile
        if not file.is_file():
            announce(entry, address)
            part = file.with_name(f".{file.name}.{_tag(address)}.part")
            transfer = drive if address.startswith("drive:") else http
            try:
                _whole(entry, address, part, transfer)
                _keep(part, file)
            except OSError as error:
                if error.errno in FULL:
                    _remove(part)
                error.filename = str(file)
                raise
            finally:
                if part.exists() and not size_of(part):
                    part.unlink()
            for other in file.parent.glob(f".{escape(file.name)}.*.part*"):
                other.unlink()
    return file


def announce(entry, address):
    """Say in one line what is downloaded from where."""
    print(
        f"{entry.name}: downloading {entry.weight} from {published.host(address)} to {entry.place} "
        f"({entry.what} of {entry.of}, by {entry.by}; licence: {entry.licence})",
        file=sys.stderr,
    )


def _whole(entry, address, part, transfer):
    """Bring the whole file to `part`. One that was resumed and is wrong is downloaded anew once. Raises Failed."""
    resumed = any(part.parent.glob(f"{escape(part.name)}*"))
    transfer(address, part, entry)
    if wrong := complaint(entry, part) or ("" if size_of(part) else "it is empty"):
        _remove(part)
        if not resumed:
            raise Failed(wrong)
        _whole(entry, address, part, transfer)


def complaint(entry, path=None):
    """What is wrong with the file of an entry, by size and hash; "" where nothing is. path: of one not in its place."""
    import pooch

    path, kept = path or entry.file, kept_hash(entry.file)
    if entry.size and (size := path.stat().st_size) != entry.size:
        return f"it has {size:,} bytes, not {entry.size:,}"
    for known, said in ((entry.hash, "as published"), (kept and f"sha256:{kept}", "as it was first downloaded here")):
        if known:
            kind, _, digest = known.partition(":")
            if (found := pooch.file_hash(str(path), alg=kind)) != digest:
                return f"its {kind} is {found[:12]}…, not {digest[:12]}… {said}"
    return ""


def kept_hash(file):
    """The sha256 that a file had when it was first downloaded; None where that is not kept."""
    try:
        return _beside(file).read_text(encoding="utf-8").split()[0].lower()
    except (OSError, ValueError, IndexError):
        return None


def recognise(path, digest):
    """The published entry whose hash a file has; None where none is known. digest: the file's sha256."""
    import pooch

    md5 = None
    for entry in published.manifest().values():
        kept = kept_hash(entry.file) if entry.file and not entry.hash else None
        if entry.hash and entry.hash.startswith("md5:"):
            md5 = md5 or f"md5:{pooch.file_hash(str(path), alg='md5')}"
        if entry.hash in (f"sha256:{digest}", md5 or "") or kept == digest:
            return entry
    return None


def _keep(part, file):
    """Put a verified file in its place, its sha256 beside it."""
    import pooch

    digest = pooch.file_hash(str(part))
    with aside(_beside(file)) as written:
        written.write_text(f"{digest}  {file.name}\n", encoding="utf-8")
    part.replace(file)


def _beside(file):
    return file.with_name(f"{file.name}.sha256")


def _remove(part):
    for path in part.parent.glob(f"{escape(part.name)}*"):  # gdown has a part of its own
        path.unlink()


def _tag(address):
    """Names the part of an address, so that what two addresses gave is never joined."""
    return sha256(address.encode()).hexdigest()[:8]
