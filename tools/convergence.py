"""Orders of convergence, measured on a network whose flow is known.

    python tools/convergence.py
    python tools/convergence.py --schedule cosine --components 1
    python tools/convergence.py --lambda

Data are a Gaussian mixture in four dimensions. For every method and step count: the root-mean-square distance,
at t = 200, to the exact flow from the same point (float64), and the slope of its logarithm between counts. With
--lambda the steps are equal in λ (from t = 900), not in t. DDPM: the error of the images' variance for one Gaussian.
PF: the distance at its own end, t = 0, and the network calls, by tolerance.
"""

import argparse
import math
from itertools import pairwise

import numpy as np
import torch

from pndm.runner.solver.analytic import GaussianMixture
from pndm.runner.solver.grid import grid_of
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.schedule import TYPES, Schedule
from pndm.runner.solver.solve import solve
from pndm.runner.table.flow import STEPS, distance, problem

TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9)


def even_in_lambda(schedule, steps):
    """From t = 900 to 200 in 0.7 · `steps` steps, and three more."""
    inner = round(0.7 * steps)
    ends = schedule.half_log_snr(900.0), schedule.half_log_snr(200.0)
    values = ends[0] + (ends[1] - ends[0]) / inner * np.arange(inner + 4)
    return [900.0, *schedule.time(values[1:inner]), 200.0, *schedule.time(values[inner + 1 :])]


def variance_error(schedule, steps):
    """|variance of DDPM's images − that of the data|: for a Gaussian each noise adds the square of its response."""
    variance = 0.3
    network = GaussianMixture(schedule, torch.zeros(1, 1).double(), torch.full((1, 1), variance).double())
    draws = torch.eye(steps + 1, dtype=torch.float64)[:, :, None]
    state = last(solve("DDPM", network, draws[0], schedule, steps, noise=lambda step: draws[step + 1]))
    return abs(state.x.square().sum().item() - variance)


def last(states):
    *_, state = states
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", choices=TYPES, default="linear")
    parser.add_argument("--components", type=int, default=3, help="1: a Gaussian (closed form); default 3")
    parser.add_argument("--lambda", dest="even", action="store_true", help="steps that are equal in λ, not in t")
    args = parser.parse_args()
    if args.components < 1:
        parser.error(f"--components is {args.components}, it must be at least 1")
    schedule = Schedule(args.schedule)
    network, noise = problem(schedule, args.components)

    end = network.flow(noise, 999, 200)
    grids = [(even_in_lambda if args.even else grid_of)(schedule, steps) for steps in STEPS]
    starts = [network.flow(noise, 999, times[0]) for times in grids]
    print("| method | " + " | ".join(f"{steps} steps" for steps in STEPS) + " | slopes |")
    print("|---" * (len(STEPS) + 2) + "|")

    def row(name, errors):
        slopes = ", ".join(f"{math.log2(a / b):.2f}" for a, b in pairwise(errors))
        print(f"| {name} | " + " | ".join(f"{error:.2g}" for error in errors) + f" | {slopes} |", flush=True)

    for name, method in METHODS.items():
        if not method.adaptive and not method.draws():
            runs = [solve(name, network, x, schedule, 1, times=t) for x, t in zip(starts, grids, strict=True)]
            row(name, [distance(next(s.x for s in states if abs(s.t - 200) < 1e-9), end) for states in runs])
    row("DDPM", [variance_error(schedule, steps) for steps in STEPS])

    end = network.flow(noise, 999, 0)
    print("\n| PF, rtol = atol | " + " | ".join(f"{tolerance:g}" for tolerance in TOLERANCES) + " |")
    print("|---" * (len(TOLERANCES) + 1) + "|")
    ends = [last(solve("PF", network, noise, schedule, 1, rtol=value, atol=value)) for value in TOLERANCES]
    print("| error | " + " | ".join(f"{distance(state.x, end):.2g}" for state in ends) + " |")
    print("| network calls an image | " + " | ".join(f"{state.nfe:.4g}" for state in ends) + " |")


if __name__ == "__main__":
    main()
