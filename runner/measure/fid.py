"""Fréchet distances between images, and the statistics files they are measured against.

    python main.py --runner fid temp/sample/A temp/stats/ddim_celeba.npz --out card.json
    python main.py --runner stats --config ddim_celeba.yml
    python main.py --runner stats FOLDER --features pixels --out statistics.npz

A distance is called FID when its features are those of pytorch-fid's Inception weights, and not otherwise.
"""

import os
import zipfile
from pathlib import Path

import torch
from tqdm import tqdm

from pndm.config.errors import InputError
from pndm.config.files import save_json
from pndm.dataset import batches, open_dataset
from pndm.dataset.readers import array, plain_folder
from pndm.model.checkpoint import sha256
from pndm.runner.measure.features import EXTRACTORS, is_fid
from pndm.runner.measure.statistics import METRICS, NEAREST, Moments, Statistics, frechet_distance, standard_error

# Images below which a distance is marked weak, since its bias falls as one over their number. A dataset's split is
# all there is of the data, however small.
WEAK = 10_000
BATCH = 64


def compare(paths, features, device, inception_path=None, out=None, metrics=()):
    """Print the distance of the images at paths[0] from those at paths[1]; returns its card, written to `out` if given.

    A path is a folder of images, an .npz or .npy of uint8 images (n, H, W, C), or a statistics file. Raises InputError
    when there are not two, and before any feature is computed when they cannot be compared. `metrics` are of METRICS.
    """
    if len(paths) != 2:
        raise InputError(f"--runner fid: needs two paths, images or a statistics file each; {len(paths)} are given")
    _writable(out, ".json")
    sides = [_open(path) for path in paths]
    for path, side in zip(paths, sides, strict=True):
        _refuse_metrics(metrics, path, None if _moments(side) else len(side))
    shapes = {path: tuple(side[0].shape) for path, side in zip(paths, sides, strict=True) if not _moments(side)}
    extractor = EXTRACTORS[features](next(iter(shapes.values())), device, inception_path) if shapes else None
    if extractor and not extractor.resize and len(set(shapes.values())) > 1:
        what = " and ".join(f"{path} of {shape}" for path, shape in shapes.items())
        raise InputError(f"--features {features}: {what}; they are compared at one size only")
    for path, side in zip(paths, sides, strict=True):
        if _moments(side):
            _refuse_other(path, side, extractor or sides[1])
    a, b = sides
    kept = [] if metrics else None
    if not _moments(b):
        b = moments_of(b, extractor, kept)
    if _moments(a):
        card = make_card(a, b, extractor)
    else:
        measurement = Measurement(extractor, b, a.record, metrics, kept)
        for ids, images in _progress(a):
            measurement.update(ids, images)
        card = measurement.card()
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        save_json(out, card)
    print(describe(card))
    return card


def make_statistics(images, features, device, out, inception_path=None):
    """Write the statistics file `out` of `images` (len() images, [i], .record). Raises InputError."""
    _writable(out, ".npz")
    _refuse_few(images.record["dataset"], images)
    extractor = EXTRACTORS[features](images[0].shape, device, inception_path)
    moments = moments_of(images, extractor)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    moments.save(out)
    print(f"{out}: {extractor.dimension} {features} features of {len(images):,} images")
    return moments


class Measurement:
    """The distance of a stream of images to a fixed reference, as the images come.

    Features are kept for `metrics` (names of METRICS) alone, for which `others` is a list of the reference's.
    """

    def __init__(self, extractor, reference, record=None, metrics=(), others=None):
        self.extractor, self.reference, self.made_of = extractor, reference, record or {}
        self.metrics, self.others = metrics, others
        self.reset()

    def reset(self):
        """Forget the images seen."""
        self.statistics, self.kept = Statistics(self.extractor.dimension), []

    @classmethod
    def of(cls, experiment, device):
        """What a sampling run of the experiment measures. Raises InputError when its reference cannot be right."""
        data, sample = experiment.Dataset, experiment.Sample
        shape = (data.channels, data.image_size, data.image_size)
        extractor = EXTRACTORS[sample.features](shape, device, sample.inception_path)
        _refuse_metrics(sample.metrics, "--total_num", sample.total_num)
        kept = [] if sample.metrics else None
        if sample.statistics:
            _refuse_metrics(sample.metrics, sample.statistics, None)
            reference = open_statistics(sample.statistics)
            _refuse_other(sample.statistics, reference, extractor)
        else:
            try:
                images = open_dataset(data)
            except InputError as error:
                raise InputError(f"{error}; --statistics FILE or --features none do without") from None
            reference = moments_of(images, extractor, kept)
        return cls(extractor, reference, None, sample.metrics, kept)

    def update(self, ids, images):
        """Take in uint8 images (n, C, H, W) of those numbers."""
        features = self.extractor(images)
        self.statistics.update(features, ids)
        if self.metrics:
            self.kept.append((torch.as_tensor(ids), features.float()))

    def gather(self, team):
        """Let the first of several processes (`Processes`) take in what the others have seen."""
        self.statistics.gather(team)
        if self.metrics:
            none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, self.extractor.dimension)
            mine = [torch.cat(parts) for parts in zip(none, *self.kept, strict=True)]
            self.kept = [mine, *team.from_others(mine)]

    def card(self):
        """What is known of the distance: value, standard error, and all that it depends on."""
        record = self.made_of | _record(self.extractor, self.statistics)
        moments = Moments(*self.statistics.moments(), record)
        error = standard_error(self.statistics, self.reference.mu, self.reference.sigma)
        card = make_card(moments, self.reference, self.extractor, error)
        if self.metrics:
            ids, features = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
            features, others = features[ids.argsort()], torch.cat(self.others)  # in whichever order they came
            card |= {name: METRICS[name](features, others) for name in self.metrics}
        return card


def make_card(a, b, extractor=None, error=None):
    """The card of the distance of `a` from the reference `b`, both `Moments`."""
    made = a.record if a.record.get("features") else b.record
    counts = [moments.record.get("images") for moments in (a, b)]
    return {
        "value": frechet_distance(a.mu, a.sigma, b.mu, b.sigma),
        "error": error,
        "features": made.get("features"),
        "hash": made.get("hash"),
        "images": counts[0],
        "resize": extractor and extractor.resize,
        "reference": _origin(b) | {"images": counts[1]},
        "weak": any(m.record.get("images", WEAK) < WEAK for m in (a, b) if m.record.get("split") is None),
    }


def name_of(card):
    """What the distance of a card may be called."""
    if is_fid(card["features"], card["hash"]):
        return "FID"
    name = f"Fréchet distance on {card['features'] or 'unnamed features'}"
    return name + " (not pytorch-fid's weights)" * (card["features"] == "inception")


def describe(card):
    """One line for a person."""
    name = name_of(card)
    reference = card["reference"]
    images, others = (f"{n:,} images" if n else "unknown images" for n in (card["images"], reference["images"]))
    error = "" if card["error"] is None else f" ± {card['error']:.4f}"
    where = reference.get("file") or reference.get("path") or reference["dataset"]
    weak = f"; weak, of fewer than {WEAK:,}" if card["weak"] else ""
    more = ""
    if kid := card.get("kid"):
        more += f"; {'KID' if name == 'FID' else 'kernel distance'} {kid['value']:.5f}"
        more += "" if kid["deviation"] is None else f" ± {kid['deviation']:.5f}"
    if prdc := card.get("prdc"):
        more += "; " + ", ".join(f"{what} {prdc[what]:.3f}" for what in ("precision", "recall", "density", "coverage"))
    return f"{name}: {card['value']:.4f}{error}, {images} to the {others} of {where}{weak}{more}"


def moments_of(images, extractor, kept=None):
    """`Moments` of `images` (len() images, [i], .record), read once; their features are added to the list `kept`."""
    statistics = Statistics(extractor.dimension, groups=1)
    for ids, batch in _progress(images):
        features = extractor(batch)
        statistics.update(features, ids)
        if kept is not None:
            kept.append(features.float())
    return Moments(*statistics.moments(), images.record | _record(extractor, statistics))


def open_statistics(path):
    """The `Moments` of a statistics file, its record extended by the file's name and hash. Raises InputError."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such statistics file, an .npz with mu and sigma; --runner stats makes one")
    moments = Moments.load(path)
    return Moments(moments.mu, moments.sigma, moments.record | {"file": str(path), "file_hash": sha256(path)})


def _open(path):
    """What lies at `path`: `Moments` or images."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        images = plain_folder(path)
    elif path.suffix == ".npz" and zipfile.is_zipfile(path) and "mu.npy" in zipfile.ZipFile(path).namelist():
        return open_statistics(path)
    elif path.suffix in (".npz", ".npy"):
        images = array(path)
    else:
        raise InputError(f"{path}: not a folder of images, nor an .npz or .npy of images or statistics")
    _refuse_few(path, images)
    return images


def _moments(side):
    return isinstance(side, Moments)


def _refuse_few(where, images):
    if len(images) < 2:
        raise InputError(f"{where}: {len(images)} image; a covariance needs at least 2")


def _refuse_other(path, moments, other):
    """Raise InputError if `moments`, read from `path`, cannot be compared with an extractor's, or other moments."""
    if _moments(other):
        wanted = (other.record.get("features"), other.record.get("hash"), len(other.mu))
    else:
        wanted = (other.name, other.hash, other.dimension)
    held = (moments.record.get("features"), moments.record.get("hash"), len(moments.mu))
    for what, theirs, ours in zip(("features", "weights' hash", "dimensions"), held, wanted, strict=True):
        if None not in (theirs, ours) and theirs != ours:
            raise InputError(f"{path}: {what} {theirs}, to be compared with {ours}; only equal ones can be")


def _refuse_metrics(metrics, where, count):
    """Raise InputError unless `count` images (None: a statistics file) at `where` are enough for the metrics."""
    if metrics and count is None:
        raise InputError(f"--metrics {','.join(metrics)}: from images on both sides, but {where} is a statistics file")
    if "prdc" in metrics and count <= NEAREST:
        raise InputError(f"--metrics prdc: needs more than {NEAREST} images on each side, {where} has {count}")


def _record(extractor, statistics):
    return {"images": statistics.count, "features": extractor.name, "hash": extractor.hash}


def _origin(moments):
    """Where a reference comes from: the file and its hash, and what its record says of the images."""
    origin = {name: value for name, value in moments.record.items() if name not in ("features", "hash", "file_hash")}
    return origin | {"hash": moments.record.get("file_hash")}


def _progress(images):
    with tqdm(total=len(images), unit="image", desc="features", dynamic_ncols=True, disable=None) as bar:
        for ids, batch in batches(images, BATCH):
            yield ids, batch
            bar.update(len(ids))


def _writable(out, suffix):
    """Refuse a file that could not be written, before the work for it is done."""
    if out is not None and (Path(out).suffix != suffix or Path(out).is_dir()):
        raise InputError(f"--out: {out} is not the name of a {suffix} file")
    if out is not None:
        there = next(folder for folder in Path(out).absolute().parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise InputError(f"--out: {out} cannot be written, {there} is not a folder that can be written to")
