"""Folders that are filled by a download."""

import contextlib
import io
import os


@contextlib.contextmanager
def filled(folder):
    """While inside, a dataset is downloaded to a folder, by one process and in silence.

    After an error, the folders made for it are removed, unless something is in them.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with alone(folder), contextlib.redirect_stdout(io.StringIO()):
            yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise


@contextlib.contextmanager
def alone(folder):
    """While inside, no other process is inside for the same folder, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
