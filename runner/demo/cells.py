"""Draws the cells of a `Request`: images, counted calls, predicted images, and the distance to the exact flow."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pndm.config.errors import InputError
from pndm.config.load import replaced
from pndm.model.backend import tf32
from pndm.runner.build import Sampling, check_solver, load_network, network_key, read_network, sampling_of
from pndm.runner.demo.request import ADAPTIVE, Row
from pndm.runner.solver.events import NotFinite
from pndm.runner.solver.solve import rehearse
from pndm.runner.table.flow import distance, flow_device, flow_from

STRIP = 10  # predicted images shown of a cell
TOLERANCE = 1e-4  # of the exact flow, which is then known to LEAST (docs/demo.md)
LEAST = 0.002  # the least distance that is told
FLOW = 4 * ADAPTIVE  # calls that the exact flow may spend
KEPT = 16  # exact flows


class Stopped(Exception):
    """The drawing was cancelled."""


@dataclass(frozen=True)
class Mixed(Sampling):
    """A `Sampling` from noise that is turned towards that of another seed, by `share` of a right angle.

    Both are independent and standard normal. So is cos(θ) a + sin(θ) b.
    """

    other: int = 0
    share: float = 0.0

    def noise(self, ids, device):
        """The noise of images `ids`, as of `Sampling`; mixed."""
        x = super().noise(ids, device)
        if not self.share:
            return x
        y = replace(self, seed=self.other, share=0.0).noise(ids, device)
        angle = self.share * math.pi / 2
        return math.cos(angle) * x + math.sin(angle) * y


@dataclass(frozen=True)
class Cell:
    """What one method made of the noise.

    asked: calls of its column; steps (None of an adaptive method) and nfe: what it took, nfe counted. message: why
    there is nothing, else empty. x: the result as the network sees it, images: as uint8, both (n, C, H, W). times: of
    the calls of image 0. strip: (t, uint8 (C, H, W)) of predicted images x̂₀ of image 0. exact: uint8 (n, C, H, W) of
    the exact flow from the same noise, and distance, root mean square to it; None until they are known.
    """

    row: Row
    asked: int
    message: str = ""
    sampling: Sampling | None = None
    precision: str = ""
    steps: int | None = None
    nfe: float = 0
    x: torch.Tensor | None = None
    images: torch.Tensor | None = None
    times: tuple = ()
    strip: tuple = ()
    exact: torch.Tensor | None = None
    distance: float | None = None

    @property
    def file(self):
        """The solver file that makes it; None of a method of METHODS."""
        return self.row.file(self.asked)


@dataclass
class Watched:
    """A network whose calls are counted, seen, and can be stopped. most: images × calls that are allowed.

    see(x, t, eps): called after each call.
    """

    network: Callable
    stop: threading.Event
    most: float
    see: Callable = lambda x, t, eps: None
    spent: int = field(default=0, init=False)

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "network"), name)  # `calls`, `broadcasts_time`

    def __call__(self, x, t, *more):
        if self.stop.is_set():
            raise Stopped
        self.spent += len(x)
        if self.spent > self.most:
            raise InputError(f"more than {self.most:,} images × calls would be spent; this is left out")
        eps = self.network(x, t, *more)
        self.see(x, t, eps)
        return eps


class Strip:
    """Keeps the times of the calls of image 0, and some of the images x̂₀ = (x − √(1−ᾱ) ε)/√ᾱ predicted there.

    At most 2 · STRIP are held: then every second one goes. An adaptive method asks about ever fewer images; what it
    asks once some have arrived is left out.
    """

    def __init__(self, sampling, images):
        self.sampling, self.images = sampling, images
        self.times, self.held, self.every = [], [], 1
        self.levels = None  # the times of x in all calls, where they are known before; a solver file tells others
        if not sampling.adaptive:
            asked = [query.level for queries, _ in rehearse(sampling.events()) for query in queries]
            self.levels = np.repeat(asked, sampling.calls_per_eps)

    def see(self, x, t, eps):
        if len(x) < self.images:
            return
        time = float(t.reshape(-1)[0]) if self.levels is None else float(self.levels[len(self.times)])
        if len(self.times) % self.every == 0:
            alpha = float(self.sampling.schedule.alpha_cumprod(time))
            clean = (x[:1] - (1 - alpha) ** 0.5 * eps[:1]) / alpha**0.5
            self.held.append((time, self.sampling.decode(clean)[0].cpu()))
        self.times.append(time)
        if len(self.held) > 2 * STRIP:
            self.held, self.every = self.held[::2], 2 * self.every

    def chosen(self):
        """At most STRIP of the predicted images, evenly, the last of those held among them."""
        count = min(STRIP, len(self.held))
        places = {round(k * (len(self.held) - 1) / max(1, count - 1)) for k in range(count)}
        return tuple(self.held[k] for k in sorted(places))


class Artist:
    """Draws requests with the network of one experiment on one device; networks and exact flows are kept.

    Several threads may draw at once.
    """

    def __init__(self, experiment, device):
        self.experiment, self.device = experiment, device
        self.lock, self.networks, self.flows = threading.Lock(), {}, OrderedDict()

    def loaded(self, experiment):
        """The `Loaded` network of an experiment that differs from the artist's in its method."""
        key = network_key(experiment, self.device)
        with self.lock:
            if key not in self.networks:
                self.networks[key] = load_network(experiment, self.device)
            check_solver(experiment, self.networks[key].record["sha256"])
            return self.networks[key]

    def draw(self, request, stop=None, watch=lambda images: None):
        """`Cell`s as they are ready: first all of them, then again those that have an exact flow, with it.

        stop: an Event; once it is set, the next network call raises Stopped. watch(images): called after each call on
        so many images.
        """
        stop, made = stop or threading.Event(), {}
        for row in request.rows:
            for calls in request.calls:
                cell = self.cell(row, calls, request.noise, made, stop, watch)
                made[row, calls] = cell
                yield cell
        able = {p: cell for p, cell in made.items() if cell.images is not None and cell.sampling.follows_a_flow}
        try:
            flows = self.follow(able.values(), request.noise, stop, watch)
        except (InputError, NotFinite) as error:
            yield from (replace(cell, message=f"no exact flow: {error}") for cell in able.values())
            return
        for cell in able.values():
            ends = flows[cell.sampling.span]
            exact = cell.sampling.decode(ends)
            yield replace(cell, exact=exact, distance=distance(cell.x, ends))

    def cell(self, row, calls, noise, made, stop, watch):
        """The `Cell` of a row and a number of calls; one of `made` is taken if it has the same steps."""
        try:
            values = {"nfe": None, "times": None, "solver": None}
            if row.files:
                values |= {"solver": row.file(calls), "profile": "exact", "spacing": "uniform"}
            else:
                values |= {"method": row.method, "spacing": row.spacing}
            values |= {"seed": noise.seed, "total_num": noise.images, "batch_size": noise.images}
            experiment = replaced(self.experiment, **values)
            sampling = sampling_of(experiment)
            if sampling.draws and noise.share:
                raise InputError(f"{row.method} draws noise in its steps, too; only its first noise could be mixed")
            if not (sampling.adaptive or sampling.solver):
                sampling = replace(sampling, steps=steps_within(sampling, calls))
            for other in made.values():
                same = other.row == row and other.images is not None and other.steps == sampling.steps
                if same and not row.files:  # each solver file is a sampler of its own
                    return replace(other, asked=calls)
            sampling = Mixed(**vars(sampling), other=noise.other, share=noise.share)
            return self.drawn(Cell(row, calls, sampling=sampling), self.loaded(experiment), noise.images, stop, watch)
        except (InputError, NotFinite) as error:
            return Cell(row, calls, str(error))

    @torch.inference_mode()
    def drawn(self, cell, loaded, images, stop, watch):
        """The cell with its images."""
        sampling, strip = cell.sampling, Strip(cell.sampling, images)

        def see(x, t, eps):
            strip.see(x, t, eps)
            watch(len(x))

        most = images * (ADAPTIVE if sampling.adaptive else cell.asked)
        network = Watched(loaded.network, stop, most, see)
        for state in sampling.states(network, range(images), self.device):
            if not state.x.isfinite().all():
                raise NotFinite(f"ε is not finite, {state.nfe:g} calls from the start")
        return replace(
            cell,
            precision=loaded.precision,
            steps=sampling.steps,
            nfe=state.nfe,
            x=state.x.cpu(),
            images=sampling.decode(state.x).cpu(),
            times=tuple(strip.times),
            strip=strip.chosen(),
        )

    @torch.inference_mode()
    def follow(self, cells, noise, stop, watch):
        """Span → the exact flow's images, (n, C, H, W) on the CPU, for every cell's span of time.

        Flows to one end are followed together: small networks take larger batches in nearly the same time.
        """
        found, n = {}, noise.images
        samplings = {cell.sampling.span: cell.sampling for cell in cells}
        for span in samplings:
            if (held := self.flows.get((noise, span))) is not None:  # another thread may drop it meanwhile
                found[span] = held
        missing, groups = [span for span in samplings if span not in found], {}
        for start, end in missing:
            groups.setdefault((end, start > max(end, 0)), []).append((start, end))
        for (end, _), spans in groups.items():
            first, device = samplings[spans[0]], flow_device(self.device)
            most = FLOW * n * len(spans) * first.calls_per_eps
            network = Watched(self.exact_network(), stop, most, lambda x, t, eps: watch(len(x)))
            network = first.conditioned(network, range(n), device)
            x = torch.cat([samplings[span].start(range(n), device) for span in spans])
            starts = np.repeat([start for start, _ in spans], n)
            ends = flow_from(x, starts, end, first.schedule, network, TOLERANCE).cpu()
            found |= dict(zip(spans, ends.split(n), strict=True))
        for span in missing:
            self.flows[noise, span] = found[span]
        while len(self.flows) > KEPT:
            self.flows.popitem(last=False)
        return found

    def exact_network(self):
        """The network in float32, for the exact flow."""
        with self.lock:
            if "exact" not in self.networks:
                network, _, _ = read_network(self.experiment)
                self.networks["exact"] = network.to(flow_device(self.device))
            network = self.networks["exact"]

        def exact(*inputs):
            with tf32(False):
                return network(*inputs)

        return exact


def steps_within(sampling, calls):
    """The most steps in which a method spends at most `calls` network calls an image. Raises InputError."""
    try:
        near = sampling.near(calls)
    except ValueError as error:
        raise InputError(str(error)) from None
    able = [steps for steps, spent in near if spent <= calls]
    if not able:
        raise InputError(f"{sampling.method} spends {near[0][1]} calls at least")
    return able[-1]
