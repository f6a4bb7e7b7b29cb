"""What a run will do and cost, before it is begun.

    python main.py --runner plan --method F-PNDM --sample_speed 10
    python main.py --runner reproduce --table celeba --plan

The steps are those of the method itself, driven without a network. Time is that of network calls alone, from a short
calibration with the experiment's network.
"""

import sys
import time
from datetime import timedelta
from math import prod
from typing import Any, NamedTuple

import torch

from pndm.config.errors import InputError
from pndm.config.load import replaced
from pndm.config.published import only_here
from pndm.dataset import count_images
from pndm.model.backend import tf32
from pndm.model.engine import peak, resolve
from pndm.model.settings import settings_of
from pndm.model.unet import UNet
from pndm.runner import sample
from pndm.runner.advice import few_images
from pndm.runner.batches import steps_of
from pndm.runner.build import adaptive, load_network, network_key, sampling_of
from pndm.runner.checkpoints import KEEP
from pndm.runner.measure.features import dimension_of
from pndm.runner.measure.statistics import GROUPS
from pndm.runner.preview import check
from pndm.runner.solver.published import PublishedSchedule
from pndm.runner.solver.solve import calls, rehearse

ENOUGH = 0.5  # seconds that a calibrating call takes, or more
PILOT = 4  # images that tell how many calls an adaptive method takes
NPY_HEAD = 128  # bytes
BESIDE_PIXELS = 68  # bytes of a PNG file that are no pixels, beside one a row and those of its blocks


class Line(NamedTuple):
    """One step: from time t and level alpha to s and alpha_s; the calls it makes; its order, as `Step` has it."""

    t: float
    s: float
    alpha: float
    alpha_s: float
    calls: int
    order: int


def lines(experiment):
    """The `Line`s of the experiment's method, which must not be adaptive. Raises InputError when it cannot run."""
    sampling = sampling_of(experiment)
    schedule = sampling.schedule
    if sampling.profile == "published":
        schedule = PublishedSchedule(schedule)  # ᾱ where the released code takes itself to be
    found = []
    for asked, step in rehearse(sampling.events()):
        times = asked[0].level, step.t
        levels = (float(schedule.alpha_cumprod(t)) for t in times)
        found.append(Line(*times, *levels, len(asked), step.order))
    return found


class Calibration(NamedTuple):
    """What a network costs: seconds an image and call; bytes of memory at the experiment's batch size."""

    seconds: float
    memory: int


class Meter:
    """Measures on a device what runs cost; each network is loaded once."""

    def __init__(self, device):
        self.device, self.networks, self.calibrations = device, {}, {}

    def network(self, experiment):
        """The network, or None when its file is not there."""
        key = network_key(experiment, self.device)
        if key not in self.networks:
            try:
                with only_here("a plan downloads nothing"):
                    plain = replaced(experiment, compile=False)  # compiling takes minutes
                    self.networks[key] = load_network(plain, self.device).network
            except InputError as error:
                print(f"not calibrated: {error}", file=sys.stderr)
                self.networks[key] = None
        return self.networks[key]

    def calibration(self, experiment):
        """A `Calibration`, or None."""
        key = network_key(experiment, self.device), experiment.Sample.batch_size
        if key not in self.calibrations:
            network = self.network(experiment)
            self.calibrations[key] = network and calibrate(network, experiment, self.device)
        return self.calibrations[key]

    def calls(self, experiment):
        """Network calls an image; of an adaptive method the mean of a few images; or None."""
        if not adaptive(experiment):
            return count_calls(experiment)
        if (network := self.network(experiment)) is None:
            return None
        with torch.inference_mode():
            *_, state = sampling_of(experiment).states(network, range(PILOT), self.device)
        return state.nfe


@torch.inference_mode()
def calibrate(network, experiment, device):
    """The `Calibration` of a network by batches that grow to the experiment's, or until they take long."""
    data, measured = experiment.Dataset, []
    n, full = 1, experiment.Sample.batch_size
    while True:
        x = torch.zeros(n, *data.shape, device=device)
        t = torch.full((n,), 500.0, device=device)
        for _ in range(2):  # the first call of a shape does more than a call
            start = time.perf_counter()
            network(x, t).sum().item()
            seconds = time.perf_counter() - start
        measured.append((n, peak(device)))
        if n == full or seconds > ENOUGH:
            break
        n = min(4 * n, full)
    (few, low), (many, high) = measured[0], measured[-1]
    per_image = (high - low) / max(1, many - few)
    return Calibration(seconds / n, int(high + per_image * (full - many)))


def count_calls(experiment):
    """Network calls an image; None of an adaptive method. Raises InputError when the method cannot run."""
    sampling = sampling_of(experiment)
    return None if sampling.adaptive else sampling.calls_per_eps * sum(map(len, calls(sampling.events())))


def most_calls(experiment, nfe):
    """The most network calls an image, up to `nfe`, that the method can spend. Raises ValueError if below a half."""
    s = sampling_of(experiment)
    if s.solver:
        spent = s.calls_per_eps * s.solver.calls
        if nfe / 2 <= spent <= nfe:
            return spent
        raise ValueError(f"the solver file makes {spent} network calls, not {nfe} or half of them")
    near = [calls for _, calls in s.near(nfe)]
    spent = [calls for calls in near if nfe / 2 <= calls <= nfe]
    if not spent:
        able = " or ".join(map(str, near))
        raise ValueError(f"method {s.method} cannot spend {nfe} network calls or half of them; it can spend {able}")
    return spent[-1]


def work(experiment, calls):
    """Images × network calls of a sampling run, batches being run whole."""
    s = experiment.Sample
    return -(-s.total_num // s.batch_size) * s.batch_size * calls


def show(experiment, device):
    """Print the plan of a sampling run. Raises InputError when it cannot be run."""
    meter, s = Meter(device), experiment.Sample
    if s.batch_size == "auto":
        raise InputError("auto is found by running; a plan needs a number", "Sample.batch_size")
    each = sampling_of(experiment).calls_per_eps
    if adaptive(experiment):
        print(f"{s.method} chooses its steps as it goes")
    else:
        print(f"{'step':>4}{'t':>10}{'to':>10}{'ᾱ':>13}{'ᾱ after':>13}{'calls':>7}  order")
        for i, (t, end, alpha, alpha_s, calls, order) in enumerate(lines(experiment), 1):
            said = order if calls == 1 else f"{calls} stages"
            print(f"{i:4}{t:10.2f}{end:10.2f}{alpha:13.6g}{alpha_s:13.6g}{each * calls:7}  {said}")
    if (calls := meter.calls(experiment)) is not None:
        print(f"calls an image    {calls:.6g}" + f", mean of {PILOT} images" * adaptive(experiment))
    print(f"images            {s.total_num:,} in batches of {s.batch_size:,}")
    print_totals([(experiment, calls)], meter)


def print_totals(runs, meter):
    """Print what `runs`, pairs of an experiment and its calls an image (None: not known), take together."""
    known = [(e, calls, meter.calibration(e)) for e, calls in runs]
    missing = sum(None in run for run in known)
    known = [run for run in known if None not in run]
    print(f"images × calls    {sum(work(e, calls) for e, calls in runs if calls):,.0f}")
    if known:
        seconds = sum(work(e, calls) * c.seconds for e, calls, c in known)
        memory = max(c.memory + 8 * GROUPS * _features(e) ** 2 for e, _, c in known)
        how = "network calls, not compiled" if any(e.Sample.compile for e, *_ in known) else "network calls"
        print(f"time              {_duration(seconds)} of {how}, {sample.device_name(meter.device)}")
        print(f"memory            {_size(memory)}" + " of the GPU" * (meter.device.type == "cuda"))
    if missing:
        print(f"time, memory      not calibrated for {missing} of {len(runs)} runs" if known else "not calibrated")
    disk = sum(sample.kept(e.Sample) * file_size(e) for e, _ in runs)
    disk += max((features_size(e) for e, _ in runs), default=0)
    print(f"disk              {_size(disk)} at most")


def show_training(experiment: Any, device: torch.device) -> None:
    """Print the plan of a training run; a training step is taken as three network calls."""
    data = experiment.Dataset
    check(experiment)
    count = count_images(data)
    steps = steps_of(experiment, count)
    passes = steps * data.batch_size / count
    network = UNet(settings_of(experiment.Model)).to(device).eval()
    parameters = sum(p.numel() for p in network.parameters())
    precision = resolve(experiment.Train.precision, device, key="Train.precision")
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), tf32(precision == "tf32"):
        seconds = 3 * steps * data.batch_size * calibrate(network, experiment, device).seconds
    print(f"steps             {steps:,} of {data.batch_size} images, {passes:,.4g} passes over {count:,} images")
    print(f"batch             of all processes together; on 8 GPUs {data.batch_size / 8:g} images each")
    print(f"parameters        {parameters:,}")
    print(f"time              {_duration(seconds)}, a step taken as three network calls, {sample.device_name(device)}")
    print(f"disk              {_size((4 * KEEP + 2) * 4 * parameters)}: {KEEP} checkpoints and two averages")
    few_images(steps * data.batch_size, f"{steps:,} steps of {data.batch_size} images")


def file_size(experiment):
    """Bytes of an image's PNG file at most."""
    pixels = prod(experiment.Dataset.shape)
    return pixels + BESIDE_PIXELS + experiment.Dataset.image_size + 24 * (pixels // 2**14 + 1)


def features_size(experiment):
    """Bytes on the disk of the features of a run that does not keep all its images, until it is finished."""
    s = experiment.Sample
    if sample.kept(s) == s.total_num or s.features == "none" or s.total_num < 2:
        return 0
    files = -(-s.total_num // s.batch_size)
    return s.total_num * _features(experiment) * (8 if s.features == "pixels" else 4) + NPY_HEAD * files


def _features(experiment):
    return dimension_of(experiment.Sample.features, experiment.Dataset.shape)


def _duration(seconds):
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _size(count):
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"
