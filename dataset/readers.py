"""Readers of the datasets' own files, with the recipes of the paper's released code."""

import contextlib
import gzip
import io
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from pndm.config.errors import InputError, first_line
from pndm.config.files import alone, made
from pndm.config.published import offline
from pndm.dataset import database

SUFFIXES = {".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
DEFAULT = Path("temp/dataset")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


@dataclass(frozen=True)
class Images:
    """len() images, [i] a uint8 tensor (C, H, W); `record` says what they are: dataset, split, crop, resize."""

    items: Sequence
    read: Callable
    record: dict

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.read(self.items[i])

    def name(self, i):
        """What messages call image i: its file, where it has one of its own."""
        return str(self.items[i]) if isinstance(self.items[i], Path) else f"image {i}"


@dataclass(frozen=True)
class Recipe:
    """How an encoded image becomes a tensor: crop a box, bring the smaller side to `size`, crop the centre.

    channels 1 or 3, None: as the file has; crop (left, upper, right, lower) or None; size in pixels or None; upright:
    turned as the camera says (EXIF). Resizing is Pillow's antialiased bilinear, which torchvision's `Resize` is.
    """

    channels: int | None = None
    crop: tuple | None = None
    size: int | None = None
    upright: bool = False

    def decode(self, file, name=None):
        """The image in `file` (a path or bytes), called `name` in errors, as uint8 (C, H, W). Raises InputError."""
        name = name or file
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):  # of no known range
                    raise ValueError("32 bits a channel; 8 and 16 can be read")
                image = ImageOps.exif_transpose(image) if self.upright else image
                grey = self.channels == 1 if self.channels else image.mode in ("1", "L", "LA") or image.mode[0] == "I"
                if image.mode[0] == "I":  # 16 bits a pixel, which Pillow would cut off at 255
                    levels = np.rint(np.asarray(image, np.float64) / 257)
                    image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
                image = image.convert("L" if grey else "RGB")
        except FileNotFoundError:
            raise InputError(f"{name}: no such image") from None
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises nearly anything for a damaged file
            raise InputError(f"{name}: not a readable image ({first_line(error)})") from None
        if self.crop:
            image = image.crop(self.crop)
        if self.size and image.size != (self.size, self.size):
            from torchvision.transforms.functional import center_crop, resize

            image = center_crop(resize(image, self.size), self.size)
        return from_picture(image)

    @property
    def record(self):
        crop = resize = None
        if self.crop:
            left, upper, right, lower = self.crop
            crop = f"{right - left}×{lower - upper} about ({(left + right) // 2}, {(upper + lower) // 2})"
        if self.size:
            resize = f"smaller side to {self.size}, antialiased bilinear; centre {self.size}×{self.size}"
        return {"crop": crop, "resize": resize}


def digits(section):
    """The 1,797 handwritten 8×8 digits of scikit-learn (UCI, Alpaydin & Kaynak 1998), grey levels 0 … 16 → 0 … 255."""
    # The file of `sklearn.datasets.load_digits`; importing scikit-learn for it would take a second of every run.
    file = Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    grey = np.loadtxt(file, delimiter=",")[:, :64].reshape(-1, 1, 8, 8)  # the last column is the label
    images = np.rint(grey * (255 / 16)).astype(np.uint8)
    return Images(torch.from_numpy(images), torch.as_tensor, {"dataset": "DIGITS", "split": "all"} | Recipe().record)


def cifar10(section):
    """The 50,000 training images or 10,000 test images, through torchvision; downloaded when they are not there."""
    from torchvision.datasets import CIFAR10

    root = _root(section)

    def whole():
        with contextlib.suppress(RuntimeError):
            return CIFAR10(root, train=section.split == "train")
        return None

    try:
        data = (whole() or _filled(section, root, whole, lambda new: CIFAR10(new, download=True))).data
    except (OSError, RuntimeError) as error:
        raise _missing(section, f"{CIFAR10.base_folder}/, unpacked from {CIFAR10.url}", error) from None
    images = torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.as_tensor, {"dataset": "CIFAR10", "split": section.split} | Recipe().record)


def fashion(section):
    """Fashion-MNIST's 60,000 training images or 10,000 test images, 28×28 grey (Xiao et al. 2017).

    Read from Dataset.path; else from temp/dataset/FASHION or Debian's folder; else downloaded. The files may be
    compressed (.gz).
    """
    images = _idx(_fashion_file(section, "images-idx3-ubyte"), 2051)[:, None]
    record = {"dataset": "FASHION", "split": section.split} | Recipe().record
    return Images(images, torch.as_tensor, record)


def fashion_labels(section):
    """The classes 0 … 9 of the images that `fashion` gives: uint8 (n,)."""
    return _idx(_fashion_file(section, "labels-idx1-ubyte"), 2049)


def celeba(section):
    """The training split, through torchvision: 128×128 about (x, y) = (89, 121), then resized to the image size."""
    from torchvision.datasets import CelebA

    try:
        names = CelebA(_root(section), split="train", target_type=[]).filename
    except (OSError, RuntimeError) as error:
        files = ", ".join(name for _, _, name in CelebA.file_list if name.endswith(".txt"))
        raise _missing(section, f"celeba/ with img_align_celeba/ (the .jpg files), {files}", error) from None
    recipe = Recipe(section.channels, (89 - 64, 121 - 64, 89 + 64, 121 + 64), section.image_size)
    images = _root(section) / CelebA.base_folder / "img_align_celeba"
    return Images(
        [images / name for name in names], recipe.decode, {"dataset": "CELEBA", "split": "train"} | recipe.record
    )


def lsun(section):
    """The training images of a category: smaller side resized to the image size, centre cropped.

    Not through torchvision's LSUN, which writes a pickle of all keys into the working folder and trusts the one it
    finds there, by the letters of the database's path alone; the images are the same ones in the same order.
    """
    if not section.category:
        raise InputError("LSUN needs a category, bedroom or church_outdoor, say", "Dataset.category", "Dataset.dataset")
    path = _root(section) / f"{section.category}_train_lmdb"
    if not (path / "data.mdb").is_file():
        raise _missing(section, f"{path.name}/data.mdb, from github.com/fyu/lsun")
    recipe = Recipe(section.channels, None, section.image_size)
    with database.transaction(path) as transaction:
        keys = np.array(list(transaction.cursor().iternext(keys=True, values=False)))
    record = {"dataset": "LSUN", "category": section.category, "split": "train"}
    return Images(keys, partial(database.read, path, recipe), record | recipe.record)


def ffhq(section):
    """All images: from the released code's LMDB (keys RESOLUTION-00000 …, `length`), or a folder of image files."""
    root, recipe = _root(section), Recipe(section.channels, None, section.image_size)
    record = {"dataset": "FFHQ", "split": "all"} | recipe.record
    if not (root / "data.mdb").exists():
        if not (files := image_files(root, below=True)):
            raise _missing(
                section, "the images in any subfolders, or data.mdb of an LMDB, from github.com/NVlabs/ffhq-dataset"
            )
        return Images(files, recipe.decode, record)
    with database.transaction(root) as transaction:
        length = transaction.get(b"length") or b"0"
    if not length.isdigit():
        raise InputError(f"{root}: not FFHQ's database: its length is {length[:20]!r}")
    count = int(length)
    keys = np.array([f"{section.image_size}-{i:05d}".encode() for i in range(count)])
    return Images(keys, partial(database.read, root, recipe), record)


def folder(section):
    """All image files in a folder and below: upright, smaller side resized to the image size, centre cropped."""
    root, recipe = _root(section), Recipe(section.channels, None, section.image_size, upright=True)
    if not (files := image_files(root, below=True)):
        raise _missing(section, f"image files ({', '.join(sorted(SUFFIXES))}) in any subfolders")
    return Images(files, recipe.decode, {"dataset": "FOLDER", "path": str(root), "split": "all"} | recipe.record)


READERS = {
    "DIGITS": digits,
    "FASHION": fashion,
    "CIFAR10": cifar10,
    "CELEBA": celeba,
    "LSUN": lsun,
    "FFHQ": ffhq,
    "FOLDER": folder,
}
# Images of the datasets that are downloaded, by split, and the megabytes that this takes.
KNOWN = {"FASHION": {"train": 60_000, "test": 10_000}, "CIFAR10": {"train": 50_000, "test": 10_000}}
MEGABYTES = {"FASHION": 31, "CIFAR10": 170}


def is_numbered(path):
    """Whether a Path is named as an image of a sampling run is: a number, then .png."""
    return path.suffix == ".png" and path.stem.isdecimal()


def image_files(path, below=False):
    """The image files of a folder, sorted; if asked for, those of all folders `below` it, linked ones too, each once.

    Of a sampling run's folder the numbered images alone, not its grid. Raises InputError for a link to nothing.
    """
    found, seen = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(folders) if below and real not in seen else []
        if real in seen:
            continue
        seen.add(real)
        of_a_run, files = "run.json" in names, (Path(folder, name) for name in names)
        found += [file for file in files if (is_numbered(file) if of_a_run else file.suffix.lower() in SUFFIXES)]
    found.sort()
    for file in found:
        if file.is_symlink() and not file.exists():
            raise InputError(f"{file}: a link to nothing")
    return [file for file in found if file.is_file()]


def plain_folder(path):
    """The images that lie in a folder, as they are. Raises InputError when there are none."""
    if not (files := image_files(path)):
        raise InputError(f"{path}: no image files in this folder ({', '.join(sorted(SUFFIXES))})")
    return Images(files, Recipe().decode, {"dataset": "FOLDER", "path": str(path), "split": None} | Recipe().record)


def array(path):
    """The uint8 images (n, H, W, C) of an .npy, which stays on the disk, or an .npz, in its `arr_0` or only array."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(images, np.lib.npyio.NpzFile):
            with images as file:
                images = file["arr_0" if "arr_0" in file else min(file)]
    except (OSError, MemoryError):
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise nearly anything for a damaged file
        raise InputError(f"{path}: not readable as NumPy's arrays ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise InputError(
            f"{path}: holds {images.dtype} {images.shape}; images are uint8 (n, H, W, C) with C 1 or 3, "
            "statistics mu (d,) and sigma (d, d)"
        )
    return Images(images, _from_array, {"dataset": "FILE", "path": str(path), "split": None} | Recipe().record)


def _fashion_file(section, ending):
    """Where a file of Fashion-MNIST lies; downloaded when it is nowhere."""
    from torchvision.datasets import FashionMNIST

    root, name = _root(section), f"{'train' if section.split == 'train' else 't10k'}-{ending}"
    folders = [root, root / "FashionMNIST" / "raw", *([] if section.path else [DEBIAN])]
    places = [folder / file for folder in folders for file in (name, f"{name}.gz")]

    def there():
        return next((place for place in places if place.is_file()), None)

    try:
        return there() or _filled(section, root, there, lambda new: FashionMNIST(new, download=True))
    except (OSError, RuntimeError) as error:
        raise _missing(section, f"{name}.gz, from github.com/zalandoresearch", error) from None


def _idx(file, magic):
    """The uint8 array of an IDX file: big-endian numbers, `magic` (its last byte: dimensions), shape; then values."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        found, *shape = np.frombuffer(content, ">i4", 1 + magic % 256).tolist()
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{file}: not readable in IDX format ({error})") from None
    if found != magic:
        raise InputError(f"{file}: not the array that its name says (its IDX header begins with {found}, not {magic})")
    return torch.from_numpy(values.copy())


def from_picture(image):
    """Pillow's image → uint8 (C, H, W)."""
    array = torch.from_numpy(np.array(image))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1).contiguous()


def _from_array(image):
    return torch.from_numpy(np.array(image.transpose(2, 0, 1)))  # a copy, since a file's own array is read-only


def _filled(section, root, find, download):
    """What `find` finds, after download(folder) of a dataset by one process. Its files appear when all are whole."""
    with made(root), alone(root), contextlib.redirect_stdout(io.StringIO()):
        if found := find():
            return found
        if why := offline():
            raise OSError(why)
        size = MEGABYTES[section.dataset]
        print(f"{section.dataset}: downloading about {size} MB through torchvision to {root}", file=sys.stderr)
        new = root / ".download"
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        try:
            download(new)
            for file in [path for path in new.rglob("*") if path.is_file()]:
                place = root / file.relative_to(new)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        if found := find():
            return found
        raise OSError("what was downloaded is not whole")


def _root(section):
    return Path(section.path) if section.path else DEFAULT / section.dataset


def _missing(section, files, error=None):
    root = _root(section)
    there = "is not a folder" if root.exists() and not root.is_dir() else "" if root.exists() else "does not exist"
    said = first_line(error).removesuffix(". You can use download=True to download it") if error else there
    why = f" ({said})" if said else ""
    return InputError(
        f"Dataset.dataset {section.dataset}: its files are not in {root}{why}; what belongs there is "
        f"{files}; Dataset.path names another folder",
        "Dataset.path",
        "Dataset.dataset",
    )
