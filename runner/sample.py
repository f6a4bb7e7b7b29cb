"""Sample images by a method, write them, and measure their distance to the data.

    python main.py --runner sample --method F-PNDM --sample_speed 50

Image i starts from its own noise. Batches are fixed ranges of image numbers and always run whole, so that an
image is the same bytes whether it is made at once, after a restart, or among more images. The stages are
iterables of (ids, uint8 images): `Sampler.images` → `write` → `measure`.
"""

import contextlib
import math
import os
import platform
import re
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from pndm.config.errors import InputError
from pndm.config.files import aside, load_json, save_json
from pndm.config.schema import with_sample
from pndm.dataset import decode
from pndm.model import checkpoint, diffusers, load_model
from pndm.model.engine import Engine, largest_batch, resolve
from pndm.runner.measure.fid import Measurement, describe
from pndm.runner.processes import processes
from pndm.runner.random import noise
from pndm.runner.solver.events import NotFinite
from pndm.runner.solver.methods import METHODS, nothing, solve, steps_for, trajectory
from pndm.runner.solver.schedule import Schedule
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
GRID = 100  # images in grid.png
AHEAD = {"cuda": 1}  # batches that a device is given before the one asked for


def run(experiment, device, folder, timeout=None):
    """Make, or finish, the images of `experiment` (a validated `Experiment`) in `folder`; returns the record.

    Under torchrun every process makes its share, and the first returns the record; `timeout` is the minutes that
    one waits for another. Raises InputError before anything is written if it cannot be done.
    """
    with processes(device, timeout) as team:
        folder = Path(folder)
        loaded = load_network(experiment, team.device)
        if experiment.Sample.batch_size == "auto":
            size = fitting(experiment, loaded[0], folder, team)
            experiment = with_sample(experiment, "--batch_size", batch_size=size)
        sampler = Sampler(experiment, team, loaded)
        total = experiment.Sample.total_num
        if record := finished(folder, sampler.identity, experiment):
            if team.first:
                print(f"{folder} already holds these {total:,} images")
                report(record, folder)
            return record
        measurement = measurement_of(experiment, team)
        with progress_bar(sum(map(len, sampler.batches(total))), team) as bar:
            record = complete(sampler, folder, measurement, bar)
        return record and report(record, folder)


def fitting(experiment, network, folder, team):
    """The batch size that `auto` stands for: that of the images in `folder`, else what fits every process's memory."""
    if (held := held_identity(folder)) is not None:
        return held["batch_size"]
    data = experiment.Dataset
    size = largest_batch(network.plain, (data.channels, data.image_size, data.image_size), team.device)
    return int(team.least(torch.tensor(size)))


def measurement_of(experiment, team):
    """What a run measures its images with; None when nothing is to be measured. Raises InputError."""
    s = experiment.Sample
    if s.metrics and (s.features == "none" or s.total_num < 2):
        raise InputError("--metrics: needs --features, and at least 2 images")
    if s.features != "none":
        if s.total_num > 1:
            return Measurement.of(experiment, team.device)
        if team.first:
            print("one image has no covariance, so no Fréchet distance is measured", file=sys.stderr)
    return None


def complete(sampler, folder, measurement=None, bar=None):
    """Make what is missing of the sampler's images in `folder`, then its grid and record; the first returns that."""
    team, s = sampler.team, sampler.experiment.Sample
    start = time.perf_counter()
    with Folder(folder, sampler.identity, team, s.keep) as target:
        for ids, _ in measure(target.write(sampler.images(target, sampler.batches(s.total_num), bar)), measurement):
            team.beat()
            if bar is not None:
                bar.update(len(ids))
    calls, made = team.total(torch.tensor([sampler.calls, sampler.made], dtype=torch.float64)).tolist()
    seconds = time.perf_counter() - start
    if measurement:
        measurement.gather(team)
    if not team.first:
        return None
    if shown := min(kept(s), GRID):
        target.save("grid.png", to_image(grid(target.read(range(shown)))))
    record = sampler.record(s.total_num, calls, made, seconds, measurement)
    save_json(folder / "result.json", record)
    return record


def kept(settings):
    """How many images, the first, a run leaves as files."""
    return settings.total_num if settings.keep is None else min(settings.keep, settings.total_num)


class Sampler:
    """A network, a method and a grid, checked and ready; makes images by their numbers.

    loaded: what `load_network` returned for this experiment, where several samplers share it.
    """

    def __init__(self, experiment, team, loaded=None):
        self.experiment, self.team, self.device = experiment, team, team.device
        e = experiment
        self.schedule = schedule_of(e)
        self.shape = (e.Dataset.channels, e.Dataset.image_size, e.Dataset.image_size)
        self.options = solver_options(e)
        self.steps = check(e)
        self.precision = precision_of(e, self.device)
        self.network, self.path, self.checkpoint = loaded or load_network(e, self.device)
        self.calls = self.made = 0

    @property
    def identity(self):
        """What the images depend on: two runs with equal identities make equal images."""
        e, s = self.experiment, self.experiment.Sample
        return {
            "method": s.method,
            "steps": self.steps,
            "profile": s.profile,
            "options": self.options,
            "seed": s.seed,
            "batch_size": s.batch_size,
            "precision": self.precision + (", compiled" if s.compile else ""),
            "checkpoint": self.checkpoint["sha256"],
            "Schedule": e.Schedule.model_dump(),
            "Model": e.Model.model_dump(),
            "images": {
                name: getattr(e.Dataset, name) for name in ("image_size", "channels", "rescaled", "logit_transform")
            },
        }

    def batches(self, total):
        """This process's share of the ranges of ids below `total`."""
        size = self.experiment.Sample.batch_size
        return self.team.share([range(first, min(first + size, total)) for first in range(0, total, size)])

    def images(self, target, batches, bar):
        """(ids, uint8 images) of `batches`: read where `target` has the whole batch, else made.

        At least one batch is made, since the record's number of network calls is counted, not computed. A GPU is
        given the next batch before the last one is asked for, so that it never waits for files.
        """
        size = self.experiment.Sample.batch_size
        ahead, under_way = AHEAD.get(self.device.type, 0), deque()
        for ids in batches:
            if target.has(ids) and (ids is not batches[-1] or self.made):
                under_way.append((ids, lambda ids=ids: target.read(ids)))
            else:
                under_way.append((ids, self.make(range(ids.start, ids.start + size), len(ids), bar)))
            while len(under_way) > (ahead if ids is not batches[-1] else 0):
                done, images = under_way.popleft()
                yield done, images()

    def make(self, ids, count, bar=None):
        """Begin to make images `ids`; returns a function that waits for the first `count`, uint8 (n, C, H, W)."""

        def watch(step, state):
            self.team.beat()
            if bar is not None:
                bar.set_postfix_str(f"step {step}" + (f"/{self.steps}" if self.steps else ""))
            self.nfe = state.nfe

        def images():
            with self._named(ids):
                return finish()[:count]

        with self._named(ids):
            finish = launch(self.experiment, self.network, self.schedule, ids, self.device, watch, self.steps)
        self.calls += self.nfe * len(ids)
        self.made += len(ids)
        return images

    @contextlib.contextmanager
    def _named(self, ids):
        try:
            yield
        except NotFinite as error:
            raise InputError(f"{self.path}: {error}, images {ids.start} to {ids.stop - 1}") from None

    def record(self, total, calls, made, seconds, measurement):
        """What is written to result.json; the `made` images that were not there took `calls` calls and `seconds`."""
        s = self.experiment.Sample
        nfe = calls / made
        return {
            "method": s.method,
            "steps": self.steps,
            "nfe": int(nfe) if nfe.is_integer() else nfe,
            "profile": s.profile,
            "options": self.options,
            "seed": s.seed,
            "images": total,
            "made": int(made),
            "seconds": round(seconds, 3),
            "images_per_second": round(made / seconds, 3),
            "frechet": measurement and measurement.card(),
            "checkpoint": self.checkpoint,
            "precision": self.precision,
            "compile": s.compile,
            "device": device_name(self.device),
            "world_size": self.team.size,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "pillow": PIL.__version__,
            },
            "config": self.experiment.model_dump(),
            "identity": self.identity,
        }


def load_network(experiment, device):
    """The experiment's network ready for `device`, the path of its file, and the record of it. Raises InputError."""
    network, path, record = read_network(experiment)
    return Engine(network, device, precision_of(experiment, device), experiment.Sample.compile), path, record


def read_network(experiment):
    """The same before it is made ready: in float32, on the CPU."""
    path = checkpoint_path(experiment.Sample.model_path)
    source = checkpoint.read(path)
    record = {
        "path": str(experiment.Sample.model_path),
        "sha256": checkpoint.sha256(source.path),
        "format": source.format,
        "weights": source.weights,
    }
    return load_model(experiment.Model, source).float(), path, record


def network_key(experiment):
    """What two experiments share that may share what `load_network` returns."""
    s = experiment.Sample
    return experiment.Model.model_dump_json(), s.model_path, s.precision, s.compile, METHODS[s.method].adaptive


def precision_of(experiment, device):
    """The precision that the experiment's network runs in on `device`."""
    s = experiment.Sample
    return resolve(s.precision, device, smooth=not METHODS[s.method].adaptive)


def generate(experiment, network, schedule, ids, device):
    """Images `ids` of an experiment, by any network: uint8 (n, C, H, W) on the CPU.

    Raises NotFinite when the network returns NaN or infinity, with the step it began at.
    """
    return launch(experiment, network, schedule, ids, device)()


@torch.inference_mode()
def launch(experiment, network, schedule, ids, device, watch=lambda step, state: None, steps=None):
    """Begin what `generate` does, and return a function that ends it; `watch` sees every state. steps: as of `states`.

    On a GPU nothing here waits for it: the work and the copy to the CPU are queued.
    """
    finite, times = [], []
    for step, state in enumerate(states(experiment, network, schedule, ids, device, steps), 1):
        finite.append(state.x.isfinite().all())
        times.append(state.t)
        watch(step, state)
    finite, images = torch.stack(finite), decode(state.x, experiment.Dataset)
    queued = torch.cuda.Event() if device.type == "cuda" else None
    finite, images = (v.to("cpu", non_blocking=queued is not None) for v in (finite, images))
    if queued:
        queued.record(torch.cuda.current_stream(device))

    def finish():
        if queued:
            queued.synchronize()
        if not finite.all():
            step = finite.tolist().index(False)
            raise NotFinite(f"ε is not finite from step {step + 1} of {len(finite)} on (to t = {times[step]:g})")
        return images

    return finish


def states(experiment, network, schedule, ids, device, steps=None):
    """The states of `solve` on the way from the noise of images `ids`, by the experiment's method.

    steps: what `steps_of` returns, where it is known: with `nfe` it takes a search.
    """
    data, s = experiment.Dataset, experiment.Sample
    shape = data.channels, data.image_size, data.image_size

    def draw(stream, step=0):
        return torch.from_numpy(noise(s.seed, ids, shape, stream, step)).to(device)

    options = solver_options(experiment) | {"noise": lambda step: draw("step", step)}
    steps = steps or steps_of(experiment, schedule)
    return solve(s.method, network, draw("sampling"), schedule, steps, s.profile, **options)


def events(experiment, x=None, steps=None):
    """The events of the experiment's method, to be answered by the caller; by default from an x of (1, 1).

    steps: as of `states`. Raises ValueError when the method cannot run as it is told to.
    """
    s, schedule, x = experiment.Sample, schedule_of(experiment), nothing() if x is None else x
    steps = steps or steps_of(experiment, schedule)
    return trajectory(s.method, x, schedule, steps, s.profile, **solver_options(experiment))


def schedule_of(experiment):
    """The experiment's `Schedule`. Raises InputError where its β leave no ᾱ."""
    s = experiment.Schedule
    try:
        return Schedule(s.type, s.beta_start, s.beta_end, s.diffusion_step)
    except ValueError as error:
        raise InputError(f"Schedule: {error}") from None


class Folder:
    """A run's folder: knows whose images it holds, gives back those there are, and takes new ones whole.

    Used as a context; at its end every image handed to it is on the disk, by whichever process. `keep`: only images
    numbered below it are written (None: all).
    """

    def __init__(self, path, identity, team, keep=None):
        self.path, self.identity, self.team = path, identity, team
        self.keep = math.inf if keep is None else keep

    def __enter__(self):
        held = held_identity(self.path)
        if held is not None and held != self.identity:
            raise InputError(f"--image_path: {self.path} holds images of another run ({contrast(held, self.identity)})")
        self.made = []  # what is to be taken back if nothing comes of the run
        if self.team.first:
            self._prepare(new=held is None)
        self.team.wait()
        self.present = {entry.name for entry in os.scandir(self.path) if entry.name.endswith(".png")}
        self.pool = ThreadPoolExecutor(2)
        self.pending = deque()
        return self

    def _prepare(self, new):
        self.made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        if new:
            self.made.insert(0, self.path / "run.json")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for left in self.path.glob(".*.tmp"):
                left.unlink()
            if new:
                save_json(self.path / "run.json", self.identity)
        except OSError:
            self._take_back()
            raise

    def _take_back(self):
        """Remove run.json and the folders made for it, unless there are images."""
        with contextlib.suppress(OSError):
            if not _holds_images(self.path):
                for path in self.made:
                    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)

    def __exit__(self, kind, error, trace):
        self.pool.shutdown(wait=True)
        if kind is None:
            self._settle(0)
            self.team.wait()
        else:
            self._take_back()

    def has(self, ids):
        return all(_name(i) in self.present for i in ids)

    def read(self, ids):
        images = [_read(self.path / _name(i)) for i in ids]
        for i, image in zip(ids, images, strict=True):
            if image.shape != images[0].shape:
                raise InputError(f"{self.path / _name(i)}: not of this run's image size; delete it and run again")
        return torch.stack(images)

    def write(self, stream):
        """Pass (ids, images) on, writing those that are not there, off the main thread."""
        for ids, images in stream:
            for i, image in zip(ids, images, strict=True):
                if i < self.keep and _name(i) not in self.present:
                    self.pending.append(self.pool.submit(self.save, _name(i), to_image(image)))
            self._settle(2 * len(ids))
            yield ids, images

    def save(self, name, image):
        with aside(self.path / name) as file:
            image.save(file, "PNG")

    def _settle(self, most):
        """Wait until at most `most` images are unwritten; raises what writing raised."""
        while len(self.pending) > most or (self.pending and self.pending[0].done()):
            self.pending.popleft().result()


def measure(stream, measurement):
    """Pass (ids, images) on, letting `measurement` see them (None: nothing is measured)."""
    for ids, images in stream:
        if measurement:
            measurement.update(ids, images)
        yield ids, images


def held_identity(folder):
    """Identity of the run whose images `folder` holds; None when it holds none. Raises InputError if nothing says."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--image_path: {folder} is not a folder")
    if not _holds_images(folder):
        return None
    try:
        return load_json(folder / "run.json")
    except FileNotFoundError:
        raise InputError(f"--image_path: {folder} holds images of which no run.json says how they were made") from None
    except ValueError:
        raise InputError(f"{folder / 'run.json'}: damaged; delete the folder or give another --image_path") from None


def finished(folder, identity, experiment):
    """The record in `folder` if it is of this very run, complete; None if not. Raises InputError if it has more."""
    total = experiment.Sample.total_num
    if held_identity(folder) != identity:
        return None
    count = sum(_is_image(entry.name) for entry in os.scandir(folder))
    if count > total:
        raise InputError(f"--total_num: {folder} already holds {count:,} images of this run, more than {total:,}")
    try:
        record = load_json(folder / "result.json")
    except (OSError, ValueError):
        return None
    if record.get("images", 0) > total:
        raise InputError(f"--total_num: {folder} already holds the record of {record['images']:,} images of this run")
    whole = all((folder / _name(i)).exists() for i in range(kept(experiment.Sample)))
    return record if whole and record.get("config") == experiment.model_dump() else None


def contrast(held, wanted):
    """The first difference of two identities, for a message."""
    for name in wanted:
        if held.get(name) != wanted[name]:
            mine, theirs = wanted[name], held.get(name)
            if isinstance(mine, dict) and isinstance(theirs, dict):
                inner = next(k for k in mine | theirs if mine.get(k) != theirs.get(k))
                name = f"{name}.{inner}"
                mine, theirs = mine.get(inner, "default"), theirs.get(inner, "default")
            return f"{name} {theirs}, not {mine}"
    return "made by another version"


def _is_image(name):
    return re.fullmatch(r"\d{6,}\.png", name) is not None


def _holds_images(folder):
    """Whether a folder holds images, or the record of images that were not kept."""
    return folder.is_dir() and any(_is_image(e.name) or e.name == "result.json" for e in os.scandir(folder))


def _name(i):
    return f"{i:06d}.png"


def _read(path):
    try:
        with Image.open(path) as image:
            pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
        return torch.from_numpy(pixels.copy())
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: not a readable image ({error}); delete it and run again") from None


def to_image(image):
    """uint8 (C, H, W) → PIL image, grey or RGB."""
    array = image.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def grid(images):
    """uint8 images (n, C, H, W) → one uint8 image (3, H', W'): tiles apart on a light ground, small ones enlarged."""
    zoom = max(1, round(64 / images.shape[-1]))
    gap = max(2, images.shape[-1] * zoom // 16)
    images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    height, width = (side + gap for side in images.shape[2:])
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    canvas = torch.full((3, gap + rows * height, gap + columns * width), 236, dtype=torch.uint8)
    for k, image in enumerate(images):
        top, left = gap + k // columns * height, gap + k % columns * width
        canvas[:, top : top + height - gap, left : left + width - gap] = image
    return canvas


def solver_options(experiment):
    """The options of `solve` that the experiment gives, other than their defaults: spacing, times, the method's own."""
    names = ("rtol", "atol", "eta", "clip", "threshold", "spacing", "times")
    settings = type(experiment.Sample).model_fields
    given = {name: getattr(experiment.Sample, name) for name in names}
    return {name: value for name, value in given.items() if value != settings[name].default}


def check(experiment):
    """The number of steps, None of an adaptive method. Raises InputError if the method cannot run as it is told to."""
    schedule, s = schedule_of(experiment), experiment.Sample
    if s.compile and METHODS[s.method].adaptive:
        raise InputError(f"--compile: {s.method} asks about ever fewer images, and each number would be compiled anew")
    try:
        steps = steps_of(experiment, schedule)
        events(experiment, steps=steps)
    except ValueError as error:
        raise InputError(f"Sample: {error}") from None
    return None if METHODS[s.method].adaptive else steps


def steps_of(experiment, schedule):
    """The number of steps: as given, or in which `nfe` network calls are spent, or as many as `times` make.

    Raises ValueError when no number of steps spends exactly `nfe` calls.
    """
    s, options = experiment.Sample, solver_options(experiment)
    if s.nfe is not None:
        return steps_for(s.method, s.nfe, schedule, s.profile, **options)
    return s.sample_speed if s.times is None else len(s.times) - 1


def checkpoint_path(given):
    """A checkpoint as given, or below the project's folder, where the bundled network lies; or its name on the hub."""
    if given is None:
        raise InputError("--model_path: no checkpoint is given, and the experiment names none")
    for path in (Path(given), ROOT / given):
        if path.exists():
            return path
    if diffusers.is_hub_name(given):
        return given
    raise InputError(f"--model_path: no file {given}; docs/networks.md names where the published ones come from")


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def progress_bar(total, team):
    """A bar over this process's images; only the first process of a team shows one."""
    return tqdm(total=total, unit="image", dynamic_ncols=True, disable=None if team.first else True)


def report(record, folder):
    """Print what a person wants to know of a finished run; returns the record."""
    how = f"{record['steps']} steps" if record["steps"] else "adaptive steps"
    print(
        f"{record['images']:,} images by {record['method']} in {how}, {record['nfe']:.4g} network calls an image, "
        f"{record['images_per_second']:.4g} images/s"
    )
    print("network from {path}: {format}; weights: {weights}".format(**record["checkpoint"]))
    if frechet := record["frechet"]:
        print(describe(frechet))
    held = [str(folder / name) for name in ("grid.png", "result.json") if (folder / name).exists()]
    print(f"{folder}: {', '.join(held)}")
    return record
