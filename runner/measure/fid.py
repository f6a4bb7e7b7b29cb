"""The runners fid and stats: distances between sets of images, and the statistics files they are measured against.

    python main.py --runner fid temp/sample/A temp/stats/ddim_celeba.npz --out card.json
    python main.py --runner stats --config ddim_celeba.yml
    python main.py --runner stats FOLDER --features pixels --out statistics.npz

A distance is called FID when its features are those of pytorch-fid's Inception weights, and not otherwise.
"""

import os
import sys
import zipfile
from pathlib import Path

from tqdm import tqdm

from pndm.config.errors import InputError
from pndm.config.files import load_json, save_json
from pndm.dataset import batches
from pndm.dataset.readers import array, plain_folder
from pndm.runner.measure.features import MOST_PIXELS, make_extractor
from pndm.runner.measure.measurement import (
    Measurement,
    describe,
    make_card,
    refuse_metrics,
    refuse_other,
    summing_device,
)
from pndm.runner.measure.reference import BATCH, moments_of, open_statistics
from pndm.runner.measure.statistics import Moments


def compare(paths, features, device, inception_path=None, out=None, metrics=()):
    """Print the distance of the images at paths[0] from those at paths[1]; returns its card, written to `out` if given.

    A path is a folder of images, an .npz or .npy of uint8 images (n, H, W, C), or a statistics file. features None: as
    a statistics file or the run that made a folder says, else inception. `metrics` are names of METRICS. Raises
    InputError when there are not two paths, and before any feature is computed when they cannot be compared.
    """
    if len(paths) != 2:
        raise InputError(f"two paths are needed, each of images or a statistics file; {len(paths)} are given", "paths")
    _refuse_unwritable(out, ".json")
    a, b = sides = [open_side(path) for path in paths]
    pairs = list(zip(paths, sides, strict=True))
    for path, side in pairs:
        refuse_metrics(metrics, path, None if isinstance(side, Moments) else len(side))
    for path, side in pairs:
        held = side.record.get("features") if isinstance(side, Moments) else None
        if None not in (features, held) and features != held:
            message = f"{path}: features {held}, to be compared with {features}; only equal ones can be"
            raise InputError(message, "paths")
    said = sorted(pairs, key=lambda pair: not isinstance(pair[1], Moments))  # a statistics file fits no others
    features = features or next(filter(None, (_features_of(*pair) for pair in said)), "inception")
    images = [(path, tuple(side[0].shape)) for path, side in pairs if not isinstance(side, Moments)]
    extractor = _extractor_for(images, features, device, inception_path) if images else None
    for path, side in pairs:
        if isinstance(side, Moments):
            refuse_other(path, side, extractor or b, "paths")
    card = _measure(a, b, extractor, metrics, summing_device(device))
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        save_json(out, card)
    print(describe(card))
    return card


def make_statistics(images, features, device, out, inception_path=None):
    """Write the statistics file `out` of `images` (len() images, [i], .record). Raises InputError.

    features None: inception.
    """
    _refuse_unwritable(out, ".npz")
    _refuse_few(images.record["dataset"], images)
    extractor = make_extractor(features or "inception", images[0].shape, device, inception_path)
    moments = moments_of(images, extractor, summing_device(device))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    moments.save(out)
    print(f"{out}: {extractor.dimension} {extractor.name} features of {len(images):,} images")


def open_side(path):
    """What lies at `path`: `Moments` or images. Raises InputError."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder", "paths")
    if path.is_dir():
        images = plain_folder(path)
        if (path / "run.json").exists() and not (path / "result.json").exists():
            print(f"{path}: an unfinished sampling run, of {len(images):,} images so far", file=sys.stderr)
    elif path.suffix == ".npz" and _holds_moments(path):
        return open_statistics(path)
    elif path.suffix in (".npz", ".npy"):
        try:
            images = array(path)
        except (MemoryError, OSError) as error:
            raise InputError(f"{path}: not readable as NumPy's arrays ({error})", "paths") from None
    else:
        raise InputError(f"{path}: not a folder of images, nor an .npz or .npy of images or statistics", "paths")
    _refuse_few(path, images)
    if not images[0].numel():
        raise InputError(f"{path}: its images are {tuple(images[0].shape)}, without values", "paths")
    return images


def _holds_moments(path):
    """Whether an .npz file holds statistics, not images."""
    try:
        with zipfile.ZipFile(path) as file:
            return "mu.npy" in file.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _features_of(path, side):
    """The name of the features that a statistics file, or the record of the run in a folder, says; or None."""
    if isinstance(side, Moments):
        return side.record.get("features")
    try:
        found = (load_json(Path(path) / "result.json").get("frechet") or {}).get("features")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _extractor_for(images, features, device, inception_path):
    """The extractor for images, given as pairs of a path and a shape (C, H, W). Raises InputError."""
    shape = images[0][1]
    try:
        extractor = make_extractor(features, shape, device, inception_path)
    except InputError as error:
        if features == "inception" and shape[0] * shape[1] * shape[2] <= MOST_PIXELS:
            more = "images as small as these can be compared by features pixels"
            raise InputError(f"{error}; {more}", *error.keys) from None
        raise
    if not extractor.resize and images[-1][1] != shape:
        what = " and ".join(f"{path} of {shape}" for path, shape in images)
        raise InputError(f"features {features}: {what}; they are compared at one size only", "Sample.features", "paths")
    return extractor


def _measure(a, b, extractor, metrics, device):
    """The card of the distance of `a` from the reference `b`, each images or `Moments`."""
    kept = [] if metrics else None
    if not isinstance(b, Moments):
        b = moments_of(b, extractor, device, kept=kept)
    if isinstance(a, Moments):
        return make_card(a, b, extractor, device=device)
    measurement = Measurement(extractor, b, a.record, metrics, kept, device)
    with tqdm(total=len(a), unit="image", desc="features", dynamic_ncols=True, disable=None) as bar:
        for ids, images in batches(a, BATCH):
            measurement.update(ids, images)
            bar.update(len(ids))
    return measurement.card()


def _refuse_few(where, images):
    if len(images) < 2:
        raise InputError(f"{where}: {len(images)} image; a covariance needs at least 2", "paths")


def _refuse_unwritable(out, suffix):
    """Refuse a file that could not be written, before the work for it is done."""
    if out is None:
        return
    if Path(out).suffix != suffix or Path(out).is_dir():
        raise InputError(f"{out} is not the name of a {suffix} file", "out")
    there = next(folder for folder in Path(out).absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{out} cannot be written: {there} is not a folder that can be written to", "out")
