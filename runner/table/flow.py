"""How far methods are from the exact flow, and the orders with which they approach it.

The exact flow is the solution of the probability flow equation from the noise of an image.
"""

import copy
import hashlib
import json
import math
import sys

import numpy as np
import torch

from pndm.config.files import save_array, save_json
from pndm.model.backend import tf32
from pndm.runner.build import network_key, read_network, sampling_of
from pndm.runner.progress import Progress
from pndm.runner.solver.adaptive import Control, dormand_prince, flow_of
from pndm.runner.solver.analytic import GaussianMixture
from pndm.runner.solver.events import NotFinite, Step
from pndm.runner.solver.solve import drive, solve
from pndm.runner.solver.transfer import phi

STEPS = (25, 50, 100, 200, 400)
IMAGES = 4  # of the exact flow that are kept for the figures


def problem(schedule, components):
    """A random Gaussian mixture in four dimensions as a network, and eight points of noise, float64."""
    rng = torch.Generator().manual_seed(0)
    means = torch.randn(components, 4, dtype=torch.float64, generator=rng)
    variances = 0.05 + 0.3 * torch.rand(components, 4, dtype=torch.float64, generator=rng)
    return GaussianMixture(schedule, means, variances), torch.randn(8, 4, dtype=torch.float64, generator=rng)


def analytic(schedule, methods, steps=STEPS):
    """Method → its distances at t = 200 from the exact flow of a Gaussian mixture, one for each of `steps`."""
    network, start = problem(schedule, components=3)
    end = network.flow(start, 999, 200)
    starts = {n: network.flow(start, 999, 1000 - 1000 / n) for n in steps}

    def error(name, n):
        states = solve(name, network, starts[n], schedule, n)
        return distance(next(state.x for state in states if abs(state.t - 200) < 1e-9), end)

    return {name: [error(name, n) for n in steps] for name in methods}


def distance(a, b):
    """Root-mean-square difference."""
    return (a - b).square().mean().sqrt().item()


def order(counts, errors):
    """The fitted order: minus the slope of log error over log count, by least squares; None with fewer than two."""
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0]) if len(counts) > 1 else None


@torch.inference_mode()
def distance_to_flow(experiment, network, device, ends):
    """The distance from `ends` (n, C, H, W) of the experiment's images, before they are rounded to bytes."""
    with tf32(False):
        *_, state = sampling_of(experiment).states(network, range(len(ends)), device)
    return distance(state.x.double(), ends)


@torch.inference_mode()
def exact_flow(experiment, network, device, images, tolerance):
    """The exact flow's images, float64 (n, C, H, W), from the noise of the first `images`.

    It starts at the first time of the experiment's method. PF's integrator follows it in float64 down to t = 0, with
    rtol = atol = `tolerance`. From there, as of the methods, one transfer leads to clean data. If the method's images
    are at the level of an earlier time (PF, noisy_end, times), the flow ends there, too.
    """
    sampling = sampling_of(experiment)
    network = sampling.conditioned(copy.deepcopy(network).double(), range(images), device)
    x = sampling.start(range(images), device).double()
    return flow_from(x, *sampling.span, sampling.schedule, network, tolerance)


@torch.inference_mode()
def flow_from(x, start, end, schedule, network, tolerance):
    """The exact flow's images from noise x (n, C, H, W) at time `start`, of all images or (n,) of each.

    end: the time at which the images are; below 0 clean data. network: of x's dtype.
    """
    last = max(end, 0.0)
    if np.min(start) > last:
        events = dormand_prince(flow_of(schedule), x, start, last, Control(rtol=tolerance, atol=tolerance))
        for event in drive(events, lambda query: network(query.x, query.x.new_tensor(query.t))):
            if isinstance(event, Step):
                x = event.x
    if end >= 0:
        return x
    return phi(x, network(x, x.new_zeros(len(x))), float(schedule.alpha_cumprod(0)), 1.0)


def flow_distances(cells, bench, images):
    """The distances to the exact flow, over the first `images`, of the cells that have one: a list of dicts.

    Those are cells of profile exact and seed 0 whose method has a fixed number of steps and draws no noise. Each is
    measured once and kept in flow.json; the exact flow's images are kept in flow/ for the figures.
    """
    chosen = [cell for cell in cells if images and has_flow(cell)]
    file = bench.folder / "flow.json"
    known = _kept(file, images)
    groups = {}
    for cell in chosen:
        if known.get(cell.name, {}).get("run") != _run(cell, bench):
            known.pop(cell.name, None)
            sampling = sampling_of(cell.experiment)
            key = network_key(cell.experiment, bench.team.device), sampling.span, sampling.label, sampling.guidance
            groups.setdefault(key, []).append(cell)
    if groups:
        with Progress(bench.team, len(groups), " flows", "exact flow") as progress:
            for group in groups.values():
                for entry in _measured(group, bench, images, progress):
                    known[entry["cell"]] = entry
                save_json(file, list(known.values()))
                progress.add(1)
    found = [known[cell.name] | {"budget": cell.asked} for cell in chosen if cell.name in known]
    return [entry for entry in found if math.isfinite(entry["rms"])]


def flow_device(device):
    """Where a flow is followed for a run on `device`: there, or on the CPU where it has no float64."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def has_flow(cell):
    """Whether a cell's images can be compared with the exact flow."""
    fixed = cell.budget is not None and (cell.profile, cell.seed) == ("exact", 0)
    return fixed and sampling_of(cell.experiment).follows_a_flow


def _kept(file, images):
    """Cell → its entry in flow.json; nothing where the file is missing, damaged, or of another number of images."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return {entry["cell"]: entry for entry in kept if entry["images"] == images}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _run(cell, bench):
    """A digest of all that the cell's images depend on."""
    return hashlib.sha256(json.dumps(bench.identity(cell)[0], sort_keys=True).encode()).hexdigest()


def _measured(group, bench, images, progress):
    """The entries of cells that have the network, the first and the last time in common: one flow serves all."""

    def at_work(*_):
        bench.team.beat()
        progress.add()

    device = flow_device(bench.team.device)
    network = read_network(group[0].experiment)[0].to(device)
    network.register_forward_hook(at_work)
    tolerance = 1e-4 / max(cell.budget.calls for cell in group)  # well below the distances, which fall with the calls
    try:
        ends = exact_flow(group[0].experiment, network, device, images, tolerance)
    except NotFinite as error:
        print(f"{group[0].name}: {error}", file=sys.stderr)
        return
    for cell in group:
        path = bench.folder / "flow" / f"{cell.name}.npy"
        path.parent.mkdir(exist_ok=True)
        decoded = sampling_of(cell.experiment).decode(ends[:IMAGES].float()).cpu().numpy()  # uint8 (n, C, H, W)
        save_array(path, decoded)
        yield {
            "cell": cell.name,
            "label": cell.label,
            "steps": sampling_of(cell.experiment).steps,
            "nfe": cell.budget.calls,
            "rms": distance_to_flow(cell.experiment, network, device, ends),
            "images": images,
            "tolerance": tolerance,
            "run": _run(cell, bench),
        }
