"""What comes before any library is imported: the environment that they read once, and the streams."""

import os
import sys


def prepare() -> None:
    """Let OpenMP's threads sleep while they wait; to be called before PyTorch is imported.

    By default they spin, and on a loaded machine they then keep the processors from the threads that they wait for
    (docs/speed.md). What the user has set stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def open_streams() -> None:
    """Let every message through: to a stream that is closed, and in an encoding that lacks its signs."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
