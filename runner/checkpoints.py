"""A training run's folder: its lock, its checkpoints, its averages.

`train-STEP.ckpt` holds everything needed to continue; the last three are kept. `ema.safetensors` is the averaged
network of the last checkpoint, `best.safetensors` the average with the least distance so far; both can be sampled from.
"""

import contextlib
import os
import sys
from pathlib import Path

import torch

from pndm.config.errors import InputError
from pndm.config.files import aside
from pndm.config.schema import fingerprint, keys
from pndm.model import checkpoint

KEEP = 3  # checkpoints
LOCK = "train.lock"


class TrainFolder:
    """The folder of a training run. Used as a context by one process: locked meanwhile against other runs.

    On an error the folder is left as it was found if there is no checkpoint yet. Raises InputError when it holds a
    run that is not to be continued (`restart`), or none that can be, or when another process trains in it.
    """

    def __init__(self, path, restart=False):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder", "train_path")
        self.checkpoints = sorted(self.path.glob("train-*.ckpt"), reverse=True)
        if self.checkpoints and not restart:
            raise InputError(f"{self.path} holds a training run; restart continues it", "train_path", "restart")
        if restart and not self.checkpoints:
            raise InputError(f"there is no train-STEP.ckpt in {self.path} to continue from", "restart", "train_path")

    def __enter__(self):
        self.made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self.before = set(self.path.iterdir())
        self.lock = _lock(self.path / LOCK)
        if sorted(self.path.glob("train-*.ckpt"), reverse=True) != self.checkpoints:
            raise InputError(f"{self.path}: another process has trained in this folder meanwhile", "train_path")
        return self

    def __exit__(self, kind, error, trace):
        if kind and not any(self.path.glob("train-*.ckpt")):
            with contextlib.suppress(OSError):
                for file in set(self.path.iterdir()) - self.before:
                    file.unlink()
                for folder in self.made:
                    folder.rmdir()
        if self.lock is not None:
            os.close(self.lock)

    def save(self, state):
        """Write the checkpoint of a run's `state` (a dict with "step"), and let the oldest go."""
        with aside(self.path / f"train-{state['step']:08d}.ckpt") as file, open(file, "wb") as handle:
            try:
                torch.save(state, handle)
            except RuntimeError as error:  # what PyTorch's writer makes of an error of the file's, a full disk say
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        for old in sorted(self.path.glob("train-*.ckpt"))[:-KEEP]:
            old.unlink()

    def save_network(self, name, network, experiment, step):
        """Write an averaged network with a record of the sections it depends on."""
        sections = {section: getattr(experiment, section).model_dump() for section in ("Schedule", "Dataset", "Model")}
        weights = "EMA" if experiment.Train.ema else "raw"
        checkpoint.save(self.path / name, network.state_dict(), {"weights": weights, "step": step, **sections})

    def load(self, experiment, take):
        """Call take(state) with the newest checkpoint that is whole. Raises InputError when there is none."""
        for file in self.checkpoints:
            try:
                state = checkpoint.unpickle(file)
                _compare(state["experiment"], experiment, file)
                take(state)
                return
            except _Different:
                raise
            except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
                if not isinstance(error, InputError):
                    error = InputError(f"{file}: not a checkpoint of a training run, or damaged")
                if file == self.checkpoints[-1]:
                    raise error from None
                print(f"{error}; the run continues from the checkpoint before it", file=sys.stderr)


class _Different(InputError):
    """A checkpoint is sound, but of another run."""


def _compare(theirs, experiment, file):
    """Raise _Different where the experiment of a checkpoint differs in what decides the training's result."""
    defaults = {name: item.default for name, item in keys(experiment)}  # of keys that are newer than the file
    for name, ours in fingerprint(experiment, "training").items():
        section, inner = name.split(".")
        other = theirs.get(section, {}).get(inner, defaults[name])
        if other != ours:
            raise _Different(f"{name} is {ours!r}, {file} was trained with {other!r}", name, "restart")


def _lock(file):
    """Lock a file, where the system can, until the process ends. Raises InputError when another process holds it."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(f"{file.parent}: another process trains in this folder", "train_path") from None
    except OSError:  # a file system without locks
        pass
    return handle
