"""A training run's folder: its lock, its checkpoints, its averages.

`train-STEP.ckpt` holds everything needed to continue; the last three are kept. `ema.safetensors` is the averaged
network of the last checkpoint, `best.safetensors` the average with the least distance so far; both can be sampled from.
`grid.png` has the newest images of the average.
"""

import contextlib
import os
import re
import sys
import zipfile
import zlib
from pathlib import Path

import torch

from pndm.config.errors import InputError
from pndm.config.files import alone, aside, made, remove_left
from pndm.config.schema import OF_A_NETWORK, fingerprint, keys
from pndm.dataset import to_picture
from pndm.model import checkpoint
from pndm.runner.processes import torchrun

LOCK = "train.lock"  # says who trains, or has trained last
OWN = (LOCK, "events.out.tfevents.*", "grid.png", "best.safetensors", "ema.safetensors")  # beside the checkpoints
KEEP = 3  # checkpoints
CHECKPOINT = re.compile(r"train-(\d{8,})\.ckpt")


def checkpoints_in(path):
    """The checkpoints in a folder, the newest first."""
    found = {file: CHECKPOINT.fullmatch(file.name) for file in path.glob("train-*.ckpt")}
    return sorted(filter(found.get, found), key=lambda file: int(found[file][1]), reverse=True)


def begun_by_this_torchrun(path):
    """Whether the torchrun that started this process has trained in a folder before, and left a checkpoint."""
    try:
        return (path / LOCK).read_text(encoding="utf-8") == torchrun() and bool(checkpoints_in(path))
    except (OSError, ValueError):
        return False


class TrainFolder:
    """The folder of a training run.

    Raises InputError when it holds a run that is not to be continued (`restart`), or none that can be.
    """

    def __init__(self, path, restart=False):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder", "train_path")
        self.checkpoints = checkpoints_in(self.path)
        if self.checkpoints and not restart:
            raise InputError(f"{self.path} holds a training run; --restart continues it", "train_path", "restart")
        if not self.checkpoints and not restart and (self.path / "ema.safetensors").exists():
            message = f"{self.path} holds a trained network, ema.safetensors, and no checkpoint; choose another folder"
            raise InputError(message, "train_path")
        if restart and not self.checkpoints:
            raise InputError(f"there is no train-STEP.ckpt in {self.path} to continue from", "restart", "train_path")

    def step_of(self, name):
        """The step of a network in this folder, as its file says it; None if there is none, or it is damaged."""
        path = self.path / name
        with contextlib.suppress(InputError):
            return checkpoint.read(path).record.get("step") if path.exists() else None

    @contextlib.contextmanager
    def locked(self):
        """While inside, no other run trains in the folder. Raises InputError when another does, or has meanwhile.

        On an error the folder is left as it was found if there is no checkpoint yet.
        """
        lock = self.path / LOCK
        message = f"{self.path}: another process trains in this folder"
        with made(self.path), alone(lock, "train_path", message):
            if checkpoints_in(self.path) != self.checkpoints:
                raise InputError(f"{self.path}: another process has trained in this folder meanwhile", "train_path")
            lock.write_text(torchrun(), encoding="utf-8")
            remove_left(self.path)
            before = set(self.path.iterdir()) - {lock}
            try:
                yield
            except BaseException:
                if not checkpoints_in(self.path):
                    for file in set(self.path.iterdir()) - before:
                        if any(map(file.match, OWN)):
                            file.unlink()
                raise

    def save(self, state):
        """Write the checkpoint of a run's `state` (a dict with "step"), and let the oldest go."""
        with aside(self.path / f"train-{state['step']:08d}.ckpt") as file, open(file, "wb") as handle:
            try:
                torch.save(state, handle)
                os.fsync(handle)  # on the disk before the old ones go
            except RuntimeError as error:  # what PyTorch's writer makes of an error of the file's, a full disk say
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        for old in checkpoints_in(self.path)[KEEP:]:
            old.unlink()

    def save_grid(self, grid):
        """Write grid.png, the newest images of the average: uint8 (3, H, W)."""
        with aside(self.path / "grid.png") as file:
            to_picture(grid).save(file, "PNG")

    def save_network(self, name, network, experiment, step):
        """Write an averaged network with a record of the sections it depends on."""
        sections = {section: getattr(experiment, section).model_dump() for section in OF_A_NETWORK}
        weights = "EMA" if experiment.Train.ema else "raw"
        checkpoint.save(self.path / name, network.state_dict(), {"weights": weights, "step": step, **sections})

    def load(self, experiment, take, first=True):
        """Call take(state) with the newest checkpoint that is whole. Raises InputError when there is none.

        first: whether this process says what is damaged.
        """
        for file in self.checkpoints:
            try:
                _check_sums(file)
                state = checkpoint.unpickle(file)
                different = _difference(state["experiment"], experiment)
                if not different:
                    take(state)
                    return
            except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
                if not isinstance(error, InputError):
                    error = InputError(f"{file}: not a checkpoint of a training run, or damaged")
                if file == self.checkpoints[-1]:
                    raise error from None
                if first:
                    print(f"{error}; the run continues from the checkpoint before it", file=sys.stderr)
            else:
                name, ours, theirs = different
                raise InputError(f"{name} is {ours!r}, {file} was trained with {theirs!r}", name, "restart")


def _check_sums(file):
    """Raise InputError if a checkpoint's sums are wrong: PyTorch writes them, and does not check them."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        damaged = file
    if damaged:
        raise InputError(f"{file}: damaged or cut short")


def _difference(theirs, experiment):
    """(key, ours, theirs) where the experiment of a checkpoint differs in what decides the training's result."""
    defaults = {name: item.default for name, item in keys(experiment)}  # of keys that are newer than the file
    for name, ours in fingerprint(experiment, "training").items():
        section, inner = name.split(".")
        other = theirs.get(section, {}).get(inner, defaults[name])
        if other != ours:
            return name, ours, other
    return None
