"""The folder of a sampling run: knows whose images it holds, gives back those there are, takes new ones whole.

It holds the images `000000.png` …, `run.json` (the fingerprint: what the images depend on), `result.json` (the record
of the finished run) and `grid.png`. Of a run that does not keep all its images, `features/` holds those of the batches
that are done, until the run is finished: with them a killed run goes on.
"""

import contextlib
import math
import os
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad

from pndm.config.errors import InputError
from pndm.config.files import alone, aside, load_json, made, remove_left, save_array, save_json
from pndm.config.schema import difference
from pndm.dataset import from_picture, is_numbered, to_picture

GRID = 100  # images in grid.png
BETWEEN = 236  # grey level between them
FEATURES = "features"  # the folder of the features of an unfinished run
DELETE = "delete the folder, or choose another folder"


@contextlib.contextmanager
def open_folder(path, identity, team, keep, shape, features=None):
    """The `Folder` at `path` (a Path) for a run, which is this run's alone until all processes have left it.

    identity: the fingerprint of the run's images. team: the processes. keep: only images numbered below it are written;
    None: all. shape: (C, H, W) of the images. features: the name of those that are kept in the place of images; None:
    none are. An error leaves no folder without images. Raises InputError when the folder holds another run's images, or
    another run is at work in it.
    """
    check_owner(path, identity)
    with contextlib.ExitStack() as stack:
        if team.first:
            stack.enter_context(made(path))
            stack.enter_context(alone(path, "image_path"))
            check_owner(path, identity)  # again: of two runs that begin together one comes first
            remove_left(path)
            if not holds_images(path):
                save_json(path / "run.json", identity)
        try:
            team.wait()
            path.mkdir(parents=True, exist_ok=True)  # a folder that another machine made may not show yet
            with ThreadPoolExecutor(2) as pool:
                yield Folder(path, pool, keep, shape, features)
            team.wait()
        except BaseException:
            if team.first and not holds_images(path):
                (path / "run.json").unlink(missing_ok=True)
                shutil.rmtree(path / FEATURES, ignore_errors=True)
            raise


class Folder:
    """The images in a folder: `read` those that were there, `write` those that were not.

    In the place of images that are not kept it has the features of their batch.
    """

    def __init__(self, path, pool, keep, shape, features=None):
        self.path, self.pool, self.pending, self.shape = path, pool, deque(), shape
        self.keep = math.inf if keep is None else keep
        self.present = {entry.name for entry in os.scandir(path) if entry.name.endswith(".png")}
        self.features = features and path / FEATURES / features
        self.described = set(os.listdir(self.features)) if features and self.features.is_dir() else set()

    def has(self, ids):
        """Whether the images of all `ids`, a batch, were there at the start, or their features and those to be kept."""
        kept = [i for i in ids if i < self.keep] if batch_name(ids) in self.described else ids
        return all(name_of(i) in self.present for i in kept)

    def read_features(self, ids):
        """Features (n, d) of a batch, if they were there at the start, else None. Raises InputError."""
        if batch_name(ids) not in self.described:
            return None
        path = self.features / batch_name(ids)
        try:
            features = torch.from_numpy(np.load(path, allow_pickle=False))
            if features.ndim == 2 and len(features) == len(ids):
                return features
        except Exception:  # a damaged file may fail in any way
            pass
        raise InputError(f"{path}: damaged; delete it and run again")

    def save_features(self, ids, features):
        """Keep features (n, d) of a batch, if this run keeps any and they are not there."""
        if self.features and batch_name(ids) not in self.described:
            self.features.mkdir(parents=True, exist_ok=True)
            save_array(self.features / batch_name(ids), features.numpy())

    def read(self, ids):
        """Images `ids`: uint8 (n, C, H, W). Raises InputError where one is damaged or of another size."""
        images = [read_image(self.path / name_of(i)) for i in ids]
        for i, image in zip(ids, images, strict=True):
            if image.shape != self.shape:
                raise InputError(f"{self.path / name_of(i)}: not of this run's image size; delete it and run again")
        return torch.stack(images)

    def write(self, stream):
        """Pass (ids, images, features) on; images that are not there are written meanwhile, by threads.

        At the end of the stream all are written.
        """
        for ids, images, features in stream:
            for i, image in zip(ids, images, strict=True) if images is not None else ():
                if i < self.keep and name_of(i) not in self.present:
                    self.pending.append(self.pool.submit(self.save, name_of(i), to_picture(image)))
            self.settle(2 * len(ids))
            yield ids, images, features
        self.settle(0)

    def save(self, name, image):
        """Write a PIL image as a PNG file."""
        with aside(self.path / name) as file:
            image.save(file, "PNG")

    def save_grid(self, count):
        """Write grid.png of the first `count` images."""
        if count:
            self.save("grid.png", to_picture(grid(self.read(range(count)))))

    def finish(self, record):
        """Write result.json, the end of the run."""
        save_json(self.path / "result.json", record)
        shutil.rmtree(self.path / FEATURES, ignore_errors=True)

    def settle(self, most):
        """Wait until at most `most` images are unwritten; raises what writing raised."""
        while len(self.pending) > most or (self.pending and self.pending[0].done()):
            self.pending.popleft().result()


def check_owner(folder, identity):
    """What `held_identity` says of a folder. Raises InputError if it holds images of a run with another fingerprint."""
    held = held_identity(folder)
    if held is None or not (found := difference(held, identity)):
        return held
    if found.startswith("checkpoint "):
        first = "another network, or of the same before more training"
        raise InputError(f"{folder} holds images of {first} ({found}); {DELETE}", "image_path")
    raise InputError(f"{folder} holds images of another run ({found}); {DELETE}", "image_path")


def held_identity(folder):
    """The fingerprint of the run whose images `folder` holds; None when it holds none. Raises InputError."""
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{folder} is a link to nothing", "image_path")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder", "image_path")
    if not holds_images(folder):
        return None
    try:
        if identity := load_json(folder / "run.json"):
            return identity
        raise ValueError
    except FileNotFoundError:
        message = f"{folder} holds images, and no run.json says how they were made; choose another folder"
        raise InputError(message, "image_path") from None
    except ValueError:
        raise InputError(f"{folder / 'run.json'}: damaged; {DELETE}") from None


def finished(folder, identity, fingerprint, total, kept):
    """The record in `folder` if it is of this run and complete, else None.

    identity: what the images depend on; fingerprint: what they and their distance depend on, as the record has it.
    total: number of images. kept: how many files. Raises InputError if the folder is another run's, or holds more.
    """
    if check_owner(folder, identity) is None:
        return None
    last = max(filter(is_numbered, folder.iterdir()), key=lambda path: int(path.stem), default=None)
    if last and int(last.stem) >= total:
        message = f"{folder} already holds {last.name} of this run, beyond the {total:,} images asked for"
        raise InputError(f"{message}; {DELETE}", "total_num")
    try:
        record = load_json(folder / "result.json")
    except (OSError, ValueError):
        return None
    images, held, card = (record.get(key, ...) for key in ("images", "fingerprint", "frechet"))
    if not isinstance(images, int) or not isinstance(held, dict) or not isinstance(card, dict | None):
        return None  # damaged
    if images > total:
        raise InputError(f"{folder} already holds the record of {images:,} images of this run; {DELETE}", "total_num")
    whole = all((folder / name_of(i)).exists() for i in range(kept))
    return record if whole and not difference(held, fingerprint) else None


def holds_images(folder):
    """Whether a folder holds images, or the features or the record of images that were not kept."""
    if not folder.is_dir():
        return False
    described = any((folder / FEATURES).glob("*/*.npy"))
    return described or any(is_numbered(path) or path.name == "result.json" for path in folder.iterdir())


def name_of(i):
    """The file of image i."""
    return f"{i:06d}.png"


def batch_name(ids):
    """The file of the features of a batch, a range."""
    return f"{ids.start:06d}-{ids.stop - 1:06d}.npy"


def read_image(path):
    """The image in a file: uint8 (C, H, W). Raises InputError."""
    try:
        if not path.is_file():
            raise OSError("no regular file")
        with Image.open(path) as image:
            return from_picture(image)
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise InputError(f"{path}: not a readable image ({error}); delete it and run again") from None


def grid(images):
    """uint8 images (n, C, H, W) → one uint8 image (3, H', W'): a square of tiles, small images enlarged."""
    zoom = max(1, round(64 / images.shape[-1]))
    images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).expand(-1, 3, -1, -1)
    columns = math.ceil(math.sqrt(len(images)))
    rows, gap = math.ceil(len(images) / columns), max(2, images.shape[-1] // 16)
    tiles = pad(images, (gap, 0, gap, 0), value=BETWEEN)
    tiles = torch.cat([tiles, torch.full_like(tiles[:1], BETWEEN).expand(rows * columns - len(images), -1, -1, -1)])
    _, _, height, width = tiles.shape
    tiles = tiles.view(rows, columns, 3, height, width).permute(2, 0, 3, 1, 4)
    return pad(tiles.reshape(3, rows * height, columns * width), (0, gap, 0, gap), value=BETWEEN)
