"""Orders of convergence, measured on a network whose flow is known.

    python tools/convergence.py
    python tools/convergence.py --schedule cosine --components 1

Data are a Gaussian mixture in four dimensions. For every method and step count: the root-mean-square distance,
at t = 200, to the exact flow from the same point (float64), and the slope of its logarithm between counts. PF:
the distance at its own end, t = 0, and the network calls, by tolerance.
"""

import argparse
import math
import sys
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from runner.convergence import STEPS, analytic, distance, problem
from runner.method import solve
from runner.schedule import TYPES, Schedule

TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9)


def last(states):
    *_, state = states
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", choices=TYPES, default="linear")
    parser.add_argument("--components", type=int, default=3, help="1: a Gaussian (closed form); default 3")
    args = parser.parse_args()
    schedule = Schedule(args.schedule)
    network, noise = problem(schedule, args.components)

    print("| method | " + " | ".join(f"{steps} steps" for steps in STEPS) + " | slopes |")
    print("|---" * (len(STEPS) + 2) + "|")
    for name, errors in analytic(schedule, args.components).items():
        slopes = ", ".join(f"{math.log2(a / b):.2f}" for a, b in pairwise(errors))
        print(f"| {name} | " + " | ".join(f"{error:.2g}" for error in errors) + f" | {slopes} |")

    end = network.flow(noise, 999, 0)
    print("\n| PF, rtol = atol | " + " | ".join(f"{tolerance:g}" for tolerance in TOLERANCES) + " |")
    print("|---" * (len(TOLERANCES) + 1) + "|")
    ends = [last(solve("PF", network, noise, schedule, 1, rtol=value, atol=value)) for value in TOLERANCES]
    print("| error | " + " | ".join(f"{distance(state.x, end):.2g}" for state in ends) + " |")
    print("| network calls an image | " + " | ".join(f"{state.nfe:.4g}" for state in ends) + " |")


if __name__ == "__main__":
    main()
