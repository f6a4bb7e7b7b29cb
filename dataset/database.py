"""Databases of encoded images in LMDB's format."""

import os

from pndm.config.errors import InputError

_ENVIRONMENTS: dict = {}  # path → LMDB; one may be open once in a process


def transaction(path):
    """A transaction of LMDB's, for reading the database in the folder `path`. Raises InputError."""
    try:
        import lmdb
    except ImportError:
        raise InputError(f"{path} is read by lmdb; pip install lmdb", "Dataset.dataset") from None
    name = str(path.resolve())
    try:
        if name not in _ENVIRONMENTS:
            _ENVIRONMENTS[name] = lmdb.open(name, readonly=True, lock=False, readahead=False, meminit=False)
        return _ENVIRONMENTS[name].begin()
    except lmdb.Error as error:
        raise InputError(f"{path}: not a readable LMDB ({error})") from None


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
