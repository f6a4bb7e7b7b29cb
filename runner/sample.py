"""Sample images by a method, write them, and measure their distance to the data.

    python main.py --runner sample --method F-PNDM --sample_speed 50

Image i starts from its own noise. Batches are fixed ranges of image numbers and always run whole, so that an
image is the same bytes whether it is made at once, after a restart, or among more images. The stages are
iterables of (ids, uint8 images, features): `Sampler.images` → `Folder.write` → `Measurement`.
"""

import contextlib
import platform
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import PIL
import torch

from pndm.config.errors import InputError
from pndm.config.load import replaced
from pndm.config.schema import fingerprint
from pndm.model.backend import deterministic
from pndm.model.engine import largest_batch
from pndm.runner.advice import compiled_apart
from pndm.runner.build import load_network, sampling_of
from pndm.runner.folder import GRID, finished, held_identity, open_folder
from pndm.runner.measure.measurement import Measurement, describe, outdated
from pndm.runner.processes import processes
from pndm.runner.progress import Progress
from pndm.runner.solver.events import NotFinite

AHEAD = {"cuda": 1}  # batches that a device is given before the one asked for


def run(experiment, device, folder, timeout=None):
    """Make, or finish, the images of `experiment` (a validated `Experiment`) in `folder`; returns the record.

    Under torchrun every process makes its share, and the first returns the record; `timeout`: minutes that one process
    waits for another. Raises InputError before anything is written if it cannot be done.
    """
    with processes(device, timeout) as team:
        folder, s = Path(folder), experiment.Sample
        held = held_identity(folder) or {}  # a folder that is continued keeps what `auto` stood for
        loaded = load_network(experiment, team.device, held.get("precision") if s.precision == "auto" else None)
        if s.batch_size == "auto":
            size = held.get("Sample.batch_size") or fitting(experiment, loaded.network, team)
            experiment = replaced(experiment, batch_size=size)
        sampler = Sampler(experiment, team, loaded)
        record = finished(folder, sampler.identity, sampler.fingerprint, s.total_num, kept(s))
        if record and (text := current(record, experiment)):
            if team.first:
                print(f"{folder} already holds these {s.total_num:,} images")
                print(text, told_files(folder), sep="\n")
            return record
        measurement = measurement_of(experiment, team)
        sampler.prepare()
        with Progress(team, s.total_num, " images", "sampling") as progress:
            record = complete(sampler, folder, measurement, progress)
        if record:
            print(told(record), told_files(folder), sep="\n")
        return record


def current(record, experiment):
    """What is told of the record of a finished run; "" if its distance has to be measured anew, or it is damaged."""
    try:
        card = record["frechet"]
        anew = card is not None and outdated(card, experiment.Dataset, experiment.Sample)
        return "" if anew else told(record)
    except (KeyError, TypeError, ValueError, AttributeError):  # not as `Sampler.record` wrote it
        return ""


def fitting(experiment, network, team):
    """The batch size that `auto` stands for: what fits every process's memory."""
    size = largest_batch(network.plain, experiment.Dataset.shape, team.device)
    return int(team.least(torch.tensor(size)))


def measurement_of(experiment, team):
    """What a run measures its images with; None when nothing is to be measured. Raises InputError."""
    s = experiment.Sample
    if s.metrics and (s.features == "none" or s.total_num < 2):
        raise InputError(f"metrics {','.join(s.metrics)}: features and at least 2 images are needed", "Sample.metrics")
    if s.features != "none":
        if s.total_num > 1:
            return Measurement.of(experiment.Dataset, s, team.device, team)
        if team.first:
            print("one image has no covariance, so no Fréchet distance is measured", file=sys.stderr)
    return None


def complete(sampler, folder, measurement=None, progress=None):
    """Make the sampler's images that are missing in `folder`, then grid.png and result.json.

    The first process returns the record, the others None.
    """
    team, s = sampler.team, sampler.experiment.Sample
    start = time.perf_counter()
    if measurement and torch.device(measurement.device).type == team.device.type:
        sampler.describe = measurement.extractor.describe
    with make(sampler, folder, measurement, progress) as target:
        calls, made = team.total(torch.tensor([sampler.calls, sampler.made], dtype=torch.float64)).tolist()
        seconds = time.perf_counter() - start
        if measurement:
            measurement.gather(team)
        if not team.first:
            return None
        with team.at_work():
            target.save_grid(min(kept(s), GRID))
            record = sampler.record(calls, made, seconds, measurement)
            target.finish(record)
        return record


@contextlib.contextmanager
def make(sampler, folder, measurement=None, progress=None):
    """Make the sampler's images that are missing in `folder`, and show them all to `measurement`.

    Inside there is a `Folder` with all of them, which is this run's alone.
    """
    s, shape = sampler.experiment.Sample, sampler.sampling.shape
    features = measurement.extractor.identity if measurement and kept(s) < s.total_num else None
    with open_folder(folder, sampler.identity, sampler.team, s.keep, shape, features) as target:
        for ids, images, features in target.write(sampler.images(target, progress)):
            if measurement:
                target.save_features(ids, measurement.update(ids, images, features))
            sampler.team.beat()
        sampler.team.wait()  # for the images of the others
        yield target


def kept(settings):
    """How many images a run leaves as files: the first ones."""
    return settings.total_num if settings.keep is None else min(settings.keep, settings.total_num)


class Sampler:
    """Makes the images of an experiment by their numbers, and counts the network calls.

    loaded: what `load_network` returned for the experiment. identity: what the images depend on; fingerprint: what the
    images and their distance depend on. describe: from uint8 images to their features, to be queued behind them. calls,
    made: of the images made so far; there: images that were there, known when they are asked for. Raises InputError if
    the method cannot run.
    """

    describe = None

    def __init__(self, experiment, team, loaded):
        self.experiment, self.team, self.loaded = experiment, team, loaded
        self.sampling = sampling_of(experiment)
        self.calls = self.made = self.there = 0
        digest, precision = loaded.record["sha256"], loaded.precision
        resolved = {"steps": self.sampling.steps, "checkpoint": digest, "precision": precision}
        if self.sampling.solver:
            resolved["solver"] = self.sampling.solver.digest
        self.identity = fingerprint(experiment, "images") | resolved
        self.fingerprint = fingerprint(experiment, "images", "distance") | resolved

    def prepare(self):
        """Compile the network, if that is asked for, before the run's clock starts."""
        network, device, size = self.loaded.network, self.team.device, self.experiment.Sample.batch_size
        if network.compiled and self.team.size > 1 and self.team.first and not deterministic():
            compiled_apart()
        with self.team.at_work():
            conditioned = self.sampling.conditioned(network, range(size), device)
            network.prepare((size, *self.sampling.shape), device, conditioned)

    def images(self, target, progress=None):
        """(ids, uint8 images, features) of this process's batches: read where `target` has them, else made.

        Where the features are read, there are no images, and there need be no features of images.

        One batch is made in any case, since the network calls of the record are counted, not computed. A GPU is given
        the next batch before the last one is asked for, so that it never waits for files.
        """
        total, size = self.experiment.Sample.total_num, self.experiment.Sample.batch_size
        batches = [range(total)[first : first + size] for first in range(0, total, size)]
        there = {ids for ids in batches if target.has(ids)}
        if len(there) == len(batches):
            there.remove(batches[-1])
        self.there = sum(map(len, there))
        if progress:
            progress.initial = self.there
        ahead, under_way = AHEAD.get(self.team.device.type, 0), deque()
        for ids in self.team.deal(batches):
            if ids in there:
                features = target.read_features(ids)
                yield ids, target.read(ids) if features is None else None, features
                continue
            under_way.append((ids, self.make(ids, size, progress), progress))
            if len(under_way) > ahead:
                yield self._finish(*under_way.popleft())
        while under_way:
            yield self._finish(*under_way.popleft())

    def make(self, wanted, size, progress=None):
        """Begin to make images `wanted`, the first of a batch of `size`, and their features; returns a `Pending`."""
        ids = range(wanted.start, wanted.start + size)
        of = f"/{self.sampling.steps}" if self.sampling.steps else ""

        def watch(step):
            self.team.beat()
            if progress:
                progress.add(extra=f"step {step}{of}")

        describe = self.describe and (lambda images: self.describe(images[: len(wanted)]))
        with self._named(ids):
            pending = self.sampling.launch(self.loaded.network, ids, self.team.device, watch, describe)
        self.calls += pending.nfe * len(ids)
        self.made += len(ids)
        return pending

    def _finish(self, ids, pending, progress):
        with self._named(ids):
            images = pending.result()[: len(ids)]
        if progress:
            progress.add(len(ids))
        return ids, images, pending.features

    @contextlib.contextmanager
    def _named(self, ids):
        try:
            yield
        except NotFinite as error:
            raise InputError(f"{self.loaded.path}: {error}, images {ids.start} to {ids.stop - 1}") from None

    def record(self, calls, made, seconds, measurement):
        """What result.json holds; the `made` images that were not there took `calls` calls and `seconds`."""
        s, nfe = self.experiment.Sample, calls / made
        return {
            "method": self.sampling.name,
            "solver": s.solver and {"path": s.solver, "sha256": self.sampling.solver.digest},
            "steps": self.sampling.steps,
            "nfe": int(nfe) if nfe.is_integer() else nfe,
            "profile": s.profile,
            "options": self.sampling.options,
            "seed": s.seed,
            "images": s.total_num,
            "made": int(made),
            "seconds": round(seconds, 3),
            "images_per_second": round(made / seconds, 3),
            "frechet": measurement and measurement.card(),
            "checkpoint": self.loaded.record,
            "precision": self.loaded.precision,
            "compile": s.compile,
            "deterministic": deterministic() if s.compile else None,
            "device": device_name(self.team.device),
            "threads": torch.get_num_threads(),
            "world_size": self.team.size,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "pillow": PIL.__version__,
            },
            "config": self.experiment.model_dump(),
            "fingerprint": self.fingerprint,
        }


def device_name(device):
    """A device for a person: the GPU's name, or the kind of processor and the threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def _counted(number, noun, form=","):
    return f"{number:{form}} {noun}{'s' * (number != 1)}"


def told(record):
    """What a person wants to know of a finished run: lines of text."""
    how = _counted(record["steps"], "step", "d") if record["steps"] else "adaptive steps"
    name = Path(record["solver"]["path"]).stem if record["solver"] else record["method"]
    lines = [
        f"{_counted(record['images'], 'image')} by {name} in {how}, "
        f"{_counted(record['nfe'], 'network call', '.4g')} an image, "
        f"{record['images_per_second']:.4g} images/s",
        "network from {path}: {format}; weights: {weights}".format(**record["checkpoint"]),
    ]
    if (frechet := record["frechet"]) is not None:
        lines.append(describe(frechet))
    return "\n".join(lines)


def told_files(folder):
    """A line for the files that a run has left, beside its images."""
    held = [name for name in ("grid.png", "result.json") if (folder / name).exists()]
    return f"{folder}: {', '.join(held)}"
