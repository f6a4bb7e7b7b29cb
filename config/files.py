"""Files that appear whole or not at all, and folders with one run in them."""

import contextlib
import io
import json
import os
import re
from pathlib import Path

from pndm.config.errors import InputError

ROOT = Path(__file__).parent.parent


def bundled(given):
    """A path as given, or below the project's folder, where the bundled files lie; None where neither is."""
    return next((path for path in (Path(given), ROOT / given) if path.exists()), None)


@contextlib.contextmanager
def aside(path):
    """A path beside `path` to write to; it is renamed to `path` at the end, and removed on an error.

    An OSError, such as of a full disk, is given the name of `path`.
    """
    path = Path(path)
    other = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield other
        other.replace(path)
    except BaseException as error:
        other.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def remove_left(folder):
    """Remove from a folder, a Path, the files that `aside` of a killed process has left there."""
    for left in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", left.name) and left.is_file():
            left.unlink()


@contextlib.contextmanager
def made(folder):
    """Make `folder`, a Path. After an error, the folders that were made are removed, unless something is in them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


@contextlib.contextmanager
def alone(path, argument=None, message=None):
    """While inside, `path`, a folder or a lock file, is this run's alone; the lock goes with its processes.

    If another run is in there: raises InputError about `argument`, or waits for it if that is None. Systems without
    such locks let everyone in.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if argument else 0))
        except BlockingIOError:
            message = message or f"another run is at work in {path}; wait for it, or choose another folder"
            raise InputError(message, argument) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def load_json(path):
    """The dict in a JSON file. Raises OSError, and ValueError where there is none in it."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def save_array(path, array):
    """Write a NumPy array as .npy, whole or not at all."""
    import numpy as np  # which `--help` need not wait for

    held = io.BytesIO()  # np.save to a file does not say that the disk is full
    np.save(held, array)
    with aside(path) as file:
        file.write_bytes(held.getbuffer())


def save_json(path, value):
    """Write a value as JSON, whole or not at all."""
    with aside(path) as file:
        file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
