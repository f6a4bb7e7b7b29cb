"""How far methods are from the exact flow, and the orders with which they approach it."""

import copy

import numpy as np
import torch

from pndm.model.engine import tf32
from pndm.runner.build import sampling_of
from pndm.runner.solver.adaptive import Control, dormand_prince, flow_of
from pndm.runner.solver.analytic import GaussianMixture
from pndm.runner.solver.events import Step
from pndm.runner.solver.solve import drive, solve

STEPS = (25, 50, 100, 200, 400)
PAPER = ("DDIM", "S-PNDM", "F-PNDM", "FON")  # its methods of a fixed number of steps


def problem(schedule, components):
    """A random Gaussian mixture in four dimensions as a network, and eight points of noise, float64."""
    rng = torch.Generator().manual_seed(0)
    means = torch.randn(components, 4, dtype=torch.float64, generator=rng)
    variances = 0.05 + 0.3 * torch.rand(components, 4, dtype=torch.float64, generator=rng)
    return GaussianMixture(schedule, means, variances), torch.randn(8, 4, dtype=torch.float64, generator=rng)


def analytic(schedule, components=3, steps=STEPS, methods=PAPER):
    """Method → its distances at t = 200 from the exact flow, from the same point, one for each of `steps`."""
    network, start = problem(schedule, components)
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
    """Distance of the images that the experiment makes, before they are rounded to bytes, from `ends` (n, C, H, W)."""
    with tf32(False):
        *_, state = sampling_of(experiment).states(network, range(len(ends)), device)
    return distance(state.x.double(), ends)


@torch.inference_mode()
def exact_flow(experiment, network, device, images, tolerance):
    """The images (n, C, H, W), float64, to which the probability flow carries the noise of the first `images`.

    It starts where the experiment's method does. PF's integrator follows it in float64 to `tolerance` (rtol and atol)
    down to t = 0, which it leaves, as any method leaves its last time, by one transfer to clean data.
    """
    sampling = sampling_of(experiment)
    schedule = sampling.schedule
    network = copy.deepcopy(network).double()
    x = sampling.noise(range(images), device).double()

    if (start := first_time(experiment)) > 0:
        events = dormand_prince(flow_of(schedule), x, start, 0.0, Control(rtol=tolerance, atol=tolerance))
        for event in drive(events, lambda query: network(query.x, query.x.new_tensor(query.t))):
            if isinstance(event, Step):
                x = event.x
    alpha = float(schedule.alpha_cumprod(0))
    return (x - (1 - alpha) ** 0.5 * network(x, x.new_zeros(len(x)))) / alpha**0.5


def first_time(experiment):
    """The time at which the experiment's method starts."""
    return float(np.max(next(sampling_of(experiment).events()).t))
