"""The distance of a stream of images to a fixed reference, and its card: the record of what was measured."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch

from pndm.config.errors import InputError
from pndm.config.files import bundled
from pndm.dataset import count_images
from pndm.model import checkpoint
from pndm.runner import fetch
from pndm.runner.measure.distance import METRICS, NEAREST, frechet_distance, standard_error
from pndm.runner.measure.features import TITLES, inception_file, is_fid, make_extractor
from pndm.runner.measure.reference import open_statistics, reference_of
from pndm.runner.measure.statistics import Moments, Statistics, smallest
from pndm.runner.processes import ALONE

# A distance from fewer images is marked weak: its bias falls as one over their number. A data set's whole split has
# no more images to offer, so it never counts as few.
WEAK = 10_000


class Background:
    """Calls functions one after another in a thread; on a GPU on a stream of its own, so that no other waits for them.

    An error is raised by the next call, or by `settle`.
    """

    def __init__(self, device):
        # Of high priority: PyTorch shares out the others in turn, and a CUDA graph may be captured on any of these.
        self.stream = torch.cuda.Stream(device, priority=-1) if torch.device(device).type == "cuda" else None
        self.pool, self.pending = ThreadPoolExecutor(1), deque()

    def call(self, function, *arguments):
        """Begin a call; waits while another one is waiting."""
        self.settle(1)
        self.pending.append(self.pool.submit(self._on_stream, function, *arguments))

    def settle(self, most=0):
        """Wait until at most `most` calls are not done."""
        while len(self.pending) > most:
            self.pending.popleft().result()
        if self.stream and not most:
            self.stream.synchronize()

    def _on_stream(self, function, *arguments):
        with torch.cuda.stream(self.stream):  # None: no stream
            function(*arguments)


class Measurement:
    """The distance of a stream of images to a fixed reference, as the images come.

    extractor: what gives features; reference: `Moments`; record: of the images, for the card; metrics: names of
    METRICS, which need the features of all images and a list `others` of the reference's; device: where sums are made;
    background: in a thread, by default on a GPU, where the thread that feeds the GPU must not wait for them.
    """

    def __init__(self, extractor, reference, record=None, metrics=(), others=None, device="cpu", background=None):
        self.extractor, self.reference, self.made_of = extractor, reference, record or {}
        self.metrics, self.others, self.device = metrics, others, device
        background = torch.device(device).type == "cuda" if background is None else background
        self.background = Background(device) if background else None
        self.reset()

    @classmethod
    def of(cls, dataset, sample, device, team=ALONE):
        """What a sampling run measures: `dataset` and `sample` are an experiment's sections.

        All processes of `team` call this, and share the work on the reference. Raises InputError when the reference
        cannot be right.
        """
        extractor = make_extractor(sample.features, dataset.shape, device, sample.inception_path)
        device = summing_device(device)
        refuse_metrics(sample.metrics, "Sample.total_num", sample.total_num)
        kept = [] if sample.metrics else None
        if sample.statistics != "dataset":
            refuse_metrics(sample.metrics, sample.statistics, None)
            reference = open_statistics(fetch.have(sample.statistics, "Sample.statistics") or sample.statistics)
            refuse_other(sample.statistics, reference, extractor, "Sample.statistics")
        else:
            try:
                reference = reference_of(dataset, extractor, device, team, kept)
            except InputError as error:
                more = "a statistics file or features none do without the data set"
                raise InputError(f"{error}; {more}", *error.keys) from None
            refuse_metrics(sample.metrics, f"Dataset.dataset {dataset.dataset}", reference.record["images"])
        return cls(extractor, reference, None, sample.metrics, kept, device)

    def reset(self):
        """Forget the images seen."""
        self._settle()
        self.statistics, self.kept = Statistics(self.extractor.dimension, device=self.device), []

    def update(self, ids, images, features=None):
        """Take in uint8 images (n, C, H, W) of those numbers; features (n, d): theirs, where they are known.

        Returns their features.
        """
        features = smallest(self.extractor(images) if features is None else features)
        if self.background:
            self.background.call(self.statistics.update, features, ids)
        else:
            self.statistics.update(features, ids)
        if self.metrics:
            self.kept.append((torch.as_tensor(ids), features.float()))
        return features

    def gather(self, team):
        """Put together what all processes (`Processes`) have seen; all call this, then the first calls `card`."""
        self._settle()
        self.statistics.gather(team)
        self.error = standard_error(self.statistics, self.reference.mu, self.reference.sigma, team)
        if self.metrics:
            none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, self.extractor.dimension)
            self.kept = team.collect([torch.cat(parts) for parts in zip(none, *self.kept, strict=True)], 0)

    def _settle(self):
        if self.background:
            self.background.settle()

    def fits(self, card):
        """Whether a card's distance was measured on these features against this reference, as far as the card tells."""
        theirs, mine = card["reference"], self.reference.record
        held = card["hash"], theirs.get("hash"), theirs.get("images")
        return held == (self.extractor.hash, mine.get("file_hash"), mine.get("images"))

    def card(self):
        """What is known of the distance: value, standard error, and all that it depends on."""
        if not self.statistics.gathered:
            self.gather(ALONE)
        extractor = self.extractor
        record = {"images": self.statistics.count, "features": extractor.name, "hash": extractor.hash}
        moments = Moments(*self.statistics.moments(), self.made_of | record)
        card = make_card(moments, self.reference, extractor, self.error, self.device)
        if self.metrics:
            ids, features = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
            features, others = features[ids.argsort()], torch.cat(self.others)
            card |= {name: METRICS[name](features, others, self.device) for name in self.metrics}
        return card


def make_card(a, b, extractor=None, error=None, device="cpu"):
    """The card of the distance of `a` from the reference `b`, both `Moments`."""
    made = a.record if a.record.get("features") else b.record
    origin = {name: value for name, value in b.record.items() if name not in ("features", "hash", "file_hash")}
    sides = [(moments.record.get("images"), moments.record.get("split")) for moments in (a, b)]
    return {
        "value": frechet_distance(a.mu, a.sigma, b.mu, b.sigma, device),
        "error": error,
        "features": made.get("features"),
        "hash": made.get("hash"),
        "images": a.record.get("images"),
        "resize": extractor and extractor.resize,
        "reference": origin | {"hash": b.record.get("file_hash"), "images": b.record.get("images")},
        "weak": any(count is not None and count < WEAK and split is None for count, split in sides),
    }


def outdated(card, dataset, sample):
    """Whether what a card's distance was measured with has changed since, as far as that is quickly seen.

    dataset, sample: an experiment's sections. `Measurement.fits` says it of a reference that was read.
    """
    known = card["reference"]
    weights = inception_file(sample.inception_path) if sample.features == "inception" else None
    if weights and checkpoint.sha256(weights) != card["hash"]:
        return True
    if sample.statistics != "dataset":
        file = bundled(sample.statistics)
        return bool(file and known.get("hash") and checkpoint.sha256(file) != known["hash"])
    try:
        return dataset.dataset == "FOLDER" and count_images(dataset) != known["images"]
    except InputError:  # the images are not there any more
        return False


def name_of(card):
    """What the distance of a card may be called."""
    if is_fid(card["features"], card["hash"]):
        return "FID"
    name = f"Fréchet distance on {TITLES.get(card['features'], card['features'] or 'unnamed features')}"
    return f"{name} (not pytorch-fid's weights)" if card["features"] == "inception" else name


def describe(card):
    """A card for a person: a line for the distance, then what belongs to it, indented."""
    name, reference = name_of(card), card["reference"]
    counts = [f"{n:,} images" if n else "an unknown number of images" for n in (card["images"], reference["images"])]
    error = "" if card["error"] is None else f" ± {card['error']:.4f}"
    where = reference.get("file") or reference.get("path") or reference.get("dataset")
    weak = f"; weak: fewer than {WEAK:,} images" if card["weak"] else ""
    lines = [f"{name}: {card['value']:.4f}{error}, from {counts[0]}", f"reference: {where}, {counts[1]}{weak}"]
    if kid := card.get("kid"):
        deviation = "" if kid["deviation"] is None else f" ± {kid['deviation']:.5f}"
        lines.append(f"{'KID' if name == 'FID' else 'kernel distance'} {kid['value']:.5f}{deviation}")
    if prdc := card.get("prdc"):
        lines.append(", ".join(f"{what} {prdc[what]:.3f}" for what in ("precision", "recall", "density", "coverage")))
    return "\n    ".join(lines)


def refuse_other(path, moments, other, *keys):
    """Raise InputError if `moments`, read from `path`, cannot be compared with an extractor's, or other moments."""
    if isinstance(other, Moments):
        wanted = (other.record.get("features"), other.record.get("hash"), len(other.mu))
    else:
        wanted = (other.name, other.hash, other.dimension)
    held = (moments.record.get("features"), moments.record.get("hash"), len(moments.mu))
    for what, theirs, ours in zip(("features", "weights' hash", "dimensions"), held, wanted, strict=True):
        if None not in (theirs, ours) and theirs != ours:
            raise InputError(f"{path}: {what} {theirs}, to be compared with {ours}; only equal ones can be", *keys)


def refuse_metrics(metrics, where, count):
    """Raise InputError unless `count` images (None: a statistics file) at `where` are enough for the metrics."""
    if metrics and count is None:
        names = ",".join(metrics)
        message = f"metrics {names}: they need the images of both sides, but {where} is a statistics file"
        raise InputError(message, "Sample.metrics")
    if "prdc" in metrics and count <= NEAREST:
        message = f"metrics prdc: more than {NEAREST} images are needed on each side; {where}: {count}"
        raise InputError(message, "Sample.metrics")


def summing_device(device):
    """Where sums in float64 are made for a run on `device`: there if it is an NVIDIA GPU, else on the CPU."""
    return device if torch.device(device).type == "cuda" else torch.device("cpu")
