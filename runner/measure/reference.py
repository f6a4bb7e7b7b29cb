"""The reference of a distance: moments of a data set's features, computed by all processes and kept in a file."""

import contextlib
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from tqdm import tqdm

from pndm.config.errors import InputError
from pndm.config.files import bundled
from pndm.dataset import batches, open_dataset
from pndm.model import checkpoint
from pndm.runner.measure.statistics import ROWS, Moments, Part, mirror, refuse_infinite
from pndm.runner.processes import ALONE

BATCH = 64  # images that are read and described at a time
LANES = 20  # parts of the images that processes share out
CACHE = Path("temp/stats")
PROBES = 16  # images whose values enter the cache key


def reference_of(section, extractor, device, team=ALONE, kept=None):
    """The `Moments` of the data set of a `Dataset` section.

    Features of a network are computed once: the moments are kept in a file below temp/stats. Its name holds the cache
    key: the section, the extractor, the number of images, the values of 16 of them, and names, sizes and times of image
    files. `kept`: see `moments_of`.
    Raises InputError when the data set cannot be read, or has one image.
    """
    images = open_dataset(section)
    if len(images) < 2:
        raise InputError(f"Dataset.dataset {section.dataset} has one image; statistics need 2", "Dataset.dataset")
    if extractor.hash is None or kept is not None:  # pixels are quick to read again; a file has no features
        return moments_of(images, extractor, device, team, kept)
    path = CACHE / f"{section.dataset}_{extractor.name}_{_cache_key(section, images, extractor)[:16]}.npz"
    moments = None
    with contextlib.suppress(InputError):
        moments = Moments.load(path)
    if team.least(torch.tensor(float(moments is not None))):
        return moments
    moments = moments_of(images, extractor, device, team)
    if team.first:
        with contextlib.suppress(OSError):  # a full disk is no reason to stop: the next run computes it again
            path.parent.mkdir(parents=True, exist_ok=True)
            moments.save(path)
    return moments


def moments_of(images, extractor, device="cpu", team=ALONE, kept=None):
    """`Moments` of `images` (len() images, [i], .record), each read once.

    All processes of `team` call this: each takes every size-th of 20 lanes of the images, and all get the result. It
    is the same to the last digit for any number of processes. The features, float32, are added to the list `kept`.
    """
    n = len(images)
    lanes = [range(n * i // LANES, n * (i + 1) // LANES) for i in range(LANES)]
    total = Part(extractor.dimension, device)
    with tqdm(total=n, unit="image", desc="features", dynamic_ncols=True, disable=None if team.first else True) as bar:
        for first in range(0, LANES, team.size):
            turn = lanes[first : first + team.size]  # one lane for each process
            lane = turn[team.rank] if team.rank < len(turn) else range(0)
            part, features = _describe(images, lane, extractor, device, kept is not None, team)
            team.wait()
            for source, lane in enumerate(turn):
                total.join(len(lane), team.broadcast(part.mean, source), team.broadcast(part.scatter, source))
                if kept is not None:
                    theirs = features if source == team.rank else torch.zeros(len(lane), extractor.dimension)
                    kept.append(team.broadcast(theirs, source))
                bar.update(len(lane))
    record = images.record | {"images": n, "features": extractor.name, "hash": extractor.hash}
    return Moments(total.mean.cpu(), (mirror(total.scatter) / (n - 1)).cpu(), record)


def open_statistics(path):
    """The `Moments` of a statistics file, its record extended by the file's name and hash. Raises InputError."""
    file = bundled(path)
    if not (file and file.is_file()):
        message = f"{path}: no such statistics file, an .npz with mu and sigma; the runner stats makes one"
        raise InputError(message, "Sample.statistics")
    moments = Moments.load(file)
    return replace(moments, record=moments.record | {"file": str(path), "file_hash": checkpoint.sha256(file)})


def _describe(images, lane, extractor, device, keep, team):
    """`Part` of the features of the images numbered `lane`, a range, and these (n, d) float32 if `keep`."""
    part, waiting, kept = Part(extractor.dimension, device), [], [torch.zeros(0, extractor.dimension)]
    describe = extractor.describe if torch.device(device).type == "cuda" else extractor  # on a GPU they stay there
    for ids, read in batches(images, BATCH, lane):
        features = describe(read)
        refuse_infinite(features, ids)
        waiting.append(features)
        if keep:
            kept.append(features.float().cpu())
        if sum(map(len, waiting)) >= ROWS:
            part.add(torch.cat(waiting))
            waiting = []
        team.beat()
    if waiting:
        part.add(torch.cat(waiting))
    return part, torch.cat(kept)


def _cache_key(section, images, extractor):
    """SHA-256 of all that the moments depend on."""
    facts = {"dataset": section.model_dump(mode="json"), "record": images.record, "images": len(images)}
    facts |= {"features": extractor.name, "dimension": extractor.dimension}
    facts |= {"hash": extractor.hash, "resize": extractor.resize}
    key = sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for i in range(0, len(images), -(-len(images) // PROBES)):
        key.update(images[i].numpy().tobytes())
    if isinstance(images.items[0], Path):
        for file in images.items:
            stat = file.stat()
            key.update(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode())
    return key.hexdigest()
