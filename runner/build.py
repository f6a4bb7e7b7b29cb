"""An experiment becomes what a run is made of: a schedule, a method on its grid, a network ready to be called.

Below this file nothing knows experiments: it gets the values that it needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from pndm.config import published
from pndm.config.errors import InputError
from pndm.config.files import bundled
from pndm.config.keys import resembling
from pndm.config.load import load_solver
from pndm.config.schema import fingerprint
from pndm.config.solver import Solver
from pndm.dataset import decode
from pndm.model import checkpoint, diffusers, load_model
from pndm.model.engine import Engine, resolve
from pndm.model.guidance import Conditional, Guided
from pndm.model.trained import check_prediction, check_training
from pndm.runner import fetch
from pndm.runner.random import Ahead, generator, noise
from pndm.runner.solver.events import Method, NotFinite
from pndm.runner.solver.methods import METHODS, method_named
from pndm.runner.solver.options import GRID_OPTIONS, OPTIONS
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.sigma import SigmaSchedule
from pndm.runner.solver.solve import nothing, rehearse, solve, steps_for, steps_near, trajectory

# Keys of Sample that are options of `solve`.
OF_SOLVE = (*OPTIONS, *GRID_OPTIONS, "spacing", "times")


@dataclass(frozen=True)
class Sampling:
    """How noise becomes images: a method on a grid of times, the schedule, the images' shape and coding.

    method: a name in `METHODS`, or a `Method` itself, of a solver file.
    steps: None of an adaptive method. options: those of `solve` that are not at their default. shape: (C, H, W).
    decode: what the network sees, (n, C, H, W), → uint8 images. classes: those that the network knows. label: the class
    of all images; None: each has its own. guidance: its scale; 1 is none.
    """

    method: str | Method
    steps: int | None
    profile: str
    options: dict
    schedule: Schedule
    shape: tuple
    seed: int
    decode: Callable
    classes: int = 0
    label: int | None = None
    guidance: float = 1.0
    solver: Solver | None = None

    @property
    def name(self):
        """The method's name, in `METHODS` or a solver file."""
        return self.solver.method if self.solver else self.method

    @property
    def adaptive(self):
        """Whether the method chooses its steps as it goes."""
        return method_named(self.method).adaptive

    @property
    def draws(self):
        """Whether the method draws noise in its steps."""
        return method_named(self.method).draws(**self.options)

    @property
    def calls_per_eps(self):
        """Network calls that one ε takes: two with guidance."""
        return 1 if self.guidance == 1 else Guided.calls

    def near(self, nfe):
        """(steps, network calls) of the most calls below `nfe`, and of the fewest of `nfe` or more, as `steps_near`."""
        each = self.calls_per_eps
        found = steps_near(self.method, nfe // each, self.schedule, self.profile, **self.options)
        return [(steps, each * spent) for steps, spent in found]

    def events(self):
        """The method's events on an x of least size, to be answered by the caller."""
        return trajectory(self.method, nothing(), self.schedule, self.steps or 1, self.profile, **self.options)

    @property
    def follows_a_flow(self):
        """Whether the images approach those of an exact flow that can be followed: by an adaptive method.

        It asks about ever fewer images, so that all must be of one class.
        """
        return not self.draws and not (self.classes and self.label is None)

    @property
    def begins(self):
        """The time at which the images start."""
        return float(np.max(next(self.events()).level))

    @property
    def ends(self):
        """The time at which the images end: below 0 where they are clean data."""
        *_, (_, step) = rehearse(self.events())
        return float(np.max(step.t))

    @property
    def span(self):
        """The times at which the images start and end."""
        return self.begins, self.ends

    def noise(self, ids, device):
        """What images `ids` start from: float32 (n, C, H, W) on `device`."""
        return _onto(device, noise(self.seed, ids, self.shape))

    def start(self, ids, device):
        """The x that images `ids` start from: noise, on EDM's levels as EDM scales it, σ·noise/√(1+σ²)."""
        x = self.noise(ids, device)
        if isinstance(self.schedule, SigmaSchedule):
            x = x * (1 - self.schedule.alpha_cumprod(self.begins)) ** 0.5
        return x

    def conditioned(self, network, ids, device):
        """The network with the classes of images `ids`, where it knows any: called as network(x, t)."""
        if not self.classes:
            return network
        if self.label is None:
            labels = [int(generator(self.seed, "label", i).integers(self.classes)) for i in ids]
        else:
            labels = [self.label]
        conditional = Conditional(network, _onto(device, np.array(labels, np.int64)))
        if self.guidance == 1:
            return conditional
        return Guided(conditional, Conditional(network, None), self.guidance)

    def states(self, network, ids, device):
        """The states of `solve` from the noise of images `ids` on, one after each step."""
        x, draw = self.start(ids, device), None
        if self.draws:
            steps = Ahead(self.seed, ids, self.shape, self.steps, min(8, torch.get_num_threads()))
            draw = lambda step: _onto(device, steps(step))  # noqa: E731
        network = self.conditioned(network, ids, device)
        return solve(self.method, network, x, self.schedule, self.steps or 1, self.profile, noise=draw, **self.options)

    @torch.inference_mode()
    def launch(self, network, ids, device, watch=lambda step: None, describe=None):
        """Begin to make images `ids`; returns a `Pending`. `watch` is called with the number of each step done.

        describe: from uint8 images to what else is wanted of them, a tensor of their device. On a GPU nothing here
        waits for it: the work and the copies to the CPU are queued, before those of images that are begun later.
        """
        finite, times = [], []
        for step, state in enumerate(self.states(network, ids, device), 1):
            finite.append(state.x.isfinite().all())
            times.append(state.t)
            watch(step)
        images = self.decode(state.x)
        return Pending(images, torch.stack(finite), times, state.nfe, describe and describe(images))


def _onto(device, values):
    """An array on a device. On a GPU from pinned memory: a copy from other memory waits for all that is queued."""
    values, queued = torch.from_numpy(values), torch.device(device).type == "cuda"
    return values.pin_memory().to(device, non_blocking=True) if queued else values.to(device)


class Pending:
    """Images that a device is making; `result` waits for them.

    images: uint8 (n, C, H, W) on the device. finite: for each step, whether its state was finite. times: where each
    step ended. nfe: network calls an image. features: a tensor on the device, or None.
    """

    def __init__(self, images, finite, times, nfe, features=None):
        self.times, self.nfe, self.ready = times, nfe, None
        queued = images.device.type == "cuda"  # the copies are in pinned memory, written while the CPU goes on
        self.images, self.finite = images.to("cpu", non_blocking=queued), finite.to("cpu", non_blocking=queued)
        self.features = None if features is None else features.to("cpu", non_blocking=queued)
        if queued:
            self.ready = torch.cuda.Event(blocking=True)
            self.ready.record(torch.cuda.current_stream(images.device))

    def result(self):
        """The images on the CPU, as `features` are then. Raises NotFinite that names the first step with NaN."""
        if self.ready:
            self.ready.synchronize()
        if not self.finite.all():
            step = self.finite.tolist().index(False)
            count, end = len(self.times), np.max(self.times[step])
            raise NotFinite(f"ε is not finite from step {step + 1} of {count} on (to t = {end:g})")
        return self.images


def schedule_of(experiment):
    """The experiment's `Schedule`. Raises InputError where its β leave no ᾱ."""
    s = experiment.Schedule
    try:
        if s.type == "edm":
            return _levels(s.sigma_min, s.sigma_max, s.diffusion_step)
        return _schedule(s.type, s.beta_start, s.beta_end, s.diffusion_step)
    except ValueError as error:
        raise InputError(f"Schedule: {error}", "Schedule.beta_end", "Schedule.diffusion_step") from None


_schedule, _levels = lru_cache(64)(Schedule), lru_cache(64)(SigmaSchedule)  # the cells of a table share theirs


@lru_cache(1024)
def _steps(line, method, nfe, schedule, profile, options):
    """`steps_for`, searched once for cells that differ only in their seed; line: the method's in `METHODS`."""
    return steps_for(method, nfe, schedule, profile, **dict(options))


def sampling_of(experiment):
    """The experiment's `Sampling`. Raises InputError if the method cannot run as it is told to."""
    s, data, schedule = experiment.Sample, experiment.Dataset, schedule_of(experiment)
    classes = getattr(experiment.Model, "labels", 0)
    shared = {"schedule": schedule, "shape": data.shape, "seed": s.seed, "decode": partial(decode, section=data)}
    shared |= {"classes": classes, "label": s.label, "guidance": s.guidance}
    if s.solver is not None:
        solver = solver_of(experiment)
        options = {"times": solver.times}
        return Sampling(solver.line, len(solver.times) - 1, "exact", options, solver=solver, **shared)
    options, line = changed(s, OF_SOLVE), METHODS[s.method]
    if s.compile and line.adaptive:
        message = f"{s.method} asks about ever fewer images, and each number of them would be compiled anew"
        raise InputError(message, "Sample.compile", "Sample.method")
    if classes and line.adaptive and s.label is None:
        message = f"{s.method} asks about ever fewer images; it needs one label for all of them"
        raise InputError(message, "Sample.label", "Sample.method")
    steps = s.sample_speed if s.times is None else len(s.times) - 1
    sampling = Sampling(s.method, None if line.adaptive else steps, s.profile, options, **shared)
    names = [*options, "sample_speed", "nfe", "profile", "method"]
    try:
        if s.nfe is not None:
            trajectory(s.method, nothing(), schedule, 1, s.profile, **options)  # raises what is not about the calls
            names = ["nfe", *names]
            hashable = tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in options.items())
            if s.nfe % sampling.calls_per_eps:
                raise ValueError(f"nfe is {s.nfe}; with guidance it must be a multiple of {sampling.calls_per_eps}")
            steps = _steps(line, s.method, s.nfe // sampling.calls_per_eps, schedule, s.profile, hashable)
            sampling = replace(sampling, steps=steps)
        sampling.events()
    except ValueError as error:
        raise InputError(str(error), *(f"Sample.{name}" for name in names)) from None
    return sampling


def changed(settings, names):
    """Name → value of the keys in `names` that are not at their default."""
    fields = type(settings).model_fields
    return {name: value for name in names if (value := getattr(settings, name)) != fields[name].default}


def solver_of(experiment):
    """The `Solver` of the experiment's solver file. Raises InputError if the experiment contradicts it."""
    s = experiment.Sample
    solver = load_solver(s.solver)
    for name in changed(s, (*OF_SOLVE, "profile")):
        message = f"a solver file says the method and its times; {name} does not go with {s.solver}"
        raise InputError(message, f"Sample.{name}", "Sample.solver")
    if s.nfe not in (None, solver.calls):
        raise InputError(f"{s.solver} makes {solver.calls} network calls, not {s.nfe}", "Sample.nfe", "Sample.solver")
    solver.check_schedule(schedule_of(experiment), s.solver)
    return solver


@dataclass(frozen=True)
class Loaded:
    """A network ready to be called, the path of its file, the record of it, and the precision it runs in."""

    network: Callable
    path: Path
    record: dict
    precision: str


def load_network(experiment, device, precision=None):
    """The experiment's network, made ready for `device`: a `Loaded`. Raises InputError.

    precision: in place of the experiment's.
    """
    precision = resolve(precision, device) if precision else precision_of(experiment, device)
    network, path, record = read_network(experiment)
    return Loaded(Engine(network, device, precision, experiment.Sample.compile), path, record, precision)


def read_network(experiment):
    """The experiment's network in float32 on the CPU, the path of its file, and the record of it. Raises InputError."""
    given = experiment.Sample.model_path
    path = checkpoint_path(given)
    source = checkpoint.read(path)
    digest = checkpoint.sha256(source.path)
    kept = published.find(path) and fetch.kept_hash(source.path)  # beside another file it is somebody else's
    if kept not in (None, digest):
        raise InputError(f"{path}: its sha256 is {digest[:12]}…, not {kept[:12]}… as when it was downloaded; delete it")
    check_solver(experiment, digest)
    check_prediction(source, "PNDMPipeline can sample from it")
    check_training(source, experiment, schedule_of(experiment))
    record = {"path": given, "sha256": digest, "format": source.format, "weights": source.weights}
    if path not in (given, bundled(given)):  # a published name, or another file with the same network
        record["file"] = str(path)
    return load_model(experiment.Model, source, schedule=schedule_of(experiment)).float(), path, record


def check_solver(experiment, digest):
    """Raise InputError if the experiment's solver file, where it has one, is not of the network with this sha256."""
    s = experiment.Sample
    if s.solver is not None and not s.any_network:
        solver_of(experiment).check_network(
            digest, s.solver, "--any_network (Sample.any_network) takes it all the same"
        )


def network_key(experiment, device):
    """Cache key: experiments with equal keys can share a loaded network; `check_solver` is for each of them."""
    return repr(fingerprint(experiment, "network")), precision_of(experiment, device)


def precision_of(experiment, device):
    """The precision that the experiment's network runs in on `device`. Raises InputError."""
    return resolve(experiment.Sample.precision, device, smooth=not adaptive(experiment))


def adaptive(experiment):
    """Whether the experiment's method chooses its steps as it goes."""
    return experiment.Sample.solver is None and METHODS[experiment.Sample.method].adaptive


def checkpoint_path(given):
    """A checkpoint's path: as given, or below the project's folder, where the bundled network lies.

    A published name or place (config/published.yml) that is not here is fetched; another name on the hub stays as it
    is. Raises InputError.
    """
    if given is None:
        raise InputError("no checkpoint is given, and the experiment names none", "model_path")
    if path := bundled(given):
        return path
    if diffusers.is_hub_name(given) and not published.find(given):
        return given
    if found := fetch.have(given, "Sample.model_path"):
        return found
    meant = resembling(given, published.manifest()) or "; --runner fetch lists the published ones"
    raise InputError(f"no file {given}{meant}", "Sample.model_path")
