"""What libraries read from the environment once, when they are imported. Importing this module imports none of them."""

import os


def prepare() -> None:
    """Let OpenMP's threads sleep while they wait; to be called before PyTorch is imported.

    By default they spin, and on a loaded machine they then keep the processors from the threads that they wait for
    (docs/speed.md). What the user has set stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
