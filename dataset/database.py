"""Databases of encoded images in LMDB's format."""

import os
from dataclasses import dataclass
from pathlib import Path

from pndm.config.errors import InputError


@dataclass(frozen=True)
class Database:
    """Encoded images in an LMDB."""

    path: Path

    @classmethod
    def at(cls, path):
        """The database in the folder `path`. Raises InputError when it cannot be opened."""
        try:
            import lmdb
        except ImportError:
            raise InputError(f"{path} is read by lmdb; pip install lmdb", "Dataset.dataset") from None
        try:
            cls(path).begin().abort()
        except lmdb.Error as error:
            raise InputError(f"{path}: not a readable LMDB ({error})") from None
        return cls(path)

    def begin(self):
        """A transaction of LMDB's, for reading."""
        import lmdb

        path = str(self.path.resolve())
        if path not in _ENVIRONMENTS:
            _ENVIRONMENTS[path] = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
        return _ENVIRONMENTS[path].begin()

    def read(self, recipe, key):
        """The image of a key, as uint8 (C, H, W), decoded by a `Recipe`. Raises InputError."""
        key = bytes(key)
        with self.begin() as transaction:
            encoded = transaction.get(key)
        name = f"{self.path}, key {key.decode(errors='replace')}"
        if encoded is None:
            raise InputError(f"{name}: not in this database")
        return recipe.decode(encoded, name)


_ENVIRONMENTS: dict = {}  # path → LMDB; one may be open once in a process


def close_databases():
    """Close every database. The next read opens it again. No open database may cross a fork."""
    while _ENVIRONMENTS:
        _ENVIRONMENTS.popitem()[1].close()


if hasattr(os, "register_at_fork"):  # where there are forks
    os.register_at_fork(before=close_databases)
