"""The exact flow, and distances from it, on networks whose flow is known in closed form."""

import numpy as np
import pytest
import torch

from pndm.config.load import load
from pndm.runner.build import schedule_of
from pndm.runner.random import noise
from pndm.runner.solver.analytic import GaussianMixture
from pndm.runner.table import flow as convergence


class Gaussian(torch.nn.Module):
    """ε of images of 8×8 from one normal distribution."""

    def __init__(self, schedule):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        mean = torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=rng) - 0.5
        self.mixture = GaussianMixture(schedule, mean, torch.full_like(mean, 0.1))

    def forward(self, x, t):
        return self.mixture(x, t)


def experiment(method, steps):
    values = {"method": method, "sample_speed": steps, "seed": 3}
    return load("digits.yml", {f"Sample.{name}": ("test", value) for name, value in values.items()})


@pytest.mark.parametrize("steps", [5, 100])
def test_the_exact_flow_is_the_one_in_closed_form(steps):
    asked = experiment("DDIM", steps)
    network = Gaussian(schedule_of(asked))
    found = convergence.exact_flow(asked, network, "cpu", 3, 1e-8)
    start = torch.from_numpy(noise(3, range(3), (1, 8, 8))).double()
    at_zero = network.mixture.flow(start, 1000 - 1000 / steps, 0)
    alpha = network.mixture.schedule.alphas_cumprod[0]
    eps = network(at_zero, torch.zeros(3))
    known = (at_zero - (1 - alpha) ** 0.5 * eps) / alpha**0.5
    assert (found - known).abs().max() < 1e-6
    assert (found - network.mixture.flow(start, 1000 - 1000 / steps, -1)).abs().max() < 1e-3


@pytest.mark.parametrize("more", [{"method": "PF"}, {"noisy_end": True}, {"times": [999, 500, 200, 20]}], ids=str)
def test_the_flow_ends_where_the_methods_images_do(more):
    values = {"method": "DDIM", "seed": 3} | ({} if "times" in more else {"sample_speed": 4}) | more
    asked = load("digits.yml", {f"Sample.{name}": ("test", value) for name, value in values.items()})
    network = Gaussian(schedule_of(asked))
    found = convergence.exact_flow(asked, network, "cpu", 3, 1e-8)
    start = torch.from_numpy(noise(3, range(3), (1, 8, 8))).double()
    begin, end = {"method": (999, 0), "noisy_end": (800, 0), "times": (999, 20)}[next(iter(more))]
    assert (found - network.mixture.flow(start, begin, end)).abs().max() < 1e-6


def test_ddim_approaches_the_flow_with_order_one():
    errors = []
    counts = (50, 100, 200)
    for steps in counts:
        asked = experiment("DDIM", steps)
        network = Gaussian(schedule_of(asked))
        ends = convergence.exact_flow(asked, network, "cpu", 2, 1e-7)
        errors.append(convergence.distance_to_flow(asked, network, "cpu", ends))
    assert convergence.order(counts, errors) == pytest.approx(1, abs=0.15)


def test_orders_are_slopes():
    counts = np.array([10, 20, 50, 100])
    assert convergence.order(counts, 3 * counts**-1.7) == pytest.approx(1.7)
    assert convergence.order(counts[:1], [1.0]) is None
