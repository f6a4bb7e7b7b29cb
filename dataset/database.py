"""Databases of encoded images in LMDB's format."""

import contextlib
import os

from pndm.config.errors import InputError

_ENVIRONMENTS: dict = {}  # path → LMDB; one may be open once in a process


@contextlib.contextmanager
def transaction(path):
    """A transaction of LMDB's, for reading the database in the folder `path` while inside. Raises InputError."""
    try:
        import lmdb
    except ImportError:
        raise InputError(f"{path} is read by lmdb; pip install lmdb", "Dataset.dataset") from None
    name = str(path.resolve())
    try:
        if name not in _ENVIRONMENTS:
            _ENVIRONMENTS[name] = _opened(lmdb, name)
        with _ENVIRONMENTS[name].begin() as opened:
            yield opened
    except lmdb.Error as error:
        raise InputError(f"{path}: not a readable LMDB ({error})") from None


def _opened(lmdb, name):
    """A database; raises lmdb.Error where its file is too short, since reading beyond its end ends the process."""
    found = lmdb.open(name, readonly=True, lock=False, readahead=False, meminit=False)
    whole = (found.info()["last_pgno"] + 1) * found.stat()["psize"]
    if os.path.getsize(os.path.join(name, "data.mdb")) < 0.99 * whole:  # the last pages may never have been written
        found.close()
        raise lmdb.Error(f"cut short: data.mdb should have {whole:,} bytes")
    return found


def read(path, recipe, key):
    """The image of a key as uint8 (C, H, W), decoded by a `Recipe`. Raises InputError."""
    with transaction(path) as opened:
        encoded = opened.get(bytes(key))
    name = f"{path}, key {bytes(key).decode(errors='replace')}"
    if encoded is None:
        raise InputError(f"{name}: not in this database")
    return recipe.decode(encoded, name)


def close_databases():
    """Close every database. The next read opens it again. No open database may cross a fork."""
    while _ENVIRONMENTS:
        _ENVIRONMENTS.popitem()[1].close()


if hasattr(os, "register_at_fork"):  # where there are forks
    os.register_at_fork(before=close_databases)
