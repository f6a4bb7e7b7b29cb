"""Grid: times of a network's own, by dynamic programming over trajectories of the exact flow.

Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling" (GITS), arXiv:2405.11326. The cost of a
step from one time to another is how far a DDIM step from the flow's own state ends from the flow. The grid of N steps
has the least sum of costs. No step knows of the others, and the methods that run on the grid are not DDIM. So the grid
is only a candidate, which is measured like all.
"""

import numpy as np
import torch

from pndm.runner.solver.transfer import phi


def costs(schedule, times, states, answers, power):
    """cost[i, j], i < j: the distance of φ's step from time i to time j from the flow; elsewhere infinite.

    times: M + 1, falling. states: x of the flow at each, (M + 1, n, …). answers: its ε at all but the last.
    power: of √ᾱ_j, by which the distance is divided. 0: as x is; 1: in x/√ᾱ, in which the flow keeps a distance in ε.
    """
    count = len(times)
    cost = np.full((count, count), np.inf)
    alphas = [float(schedule.alpha_cumprod(t)) for t in times]
    for i in range(count - 1):
        for j in range(i + 1, count):
            step = phi(states[i], answers[i], alphas[i], alphas[j])
            distance = (step - states[j]).double().square().mean().sqrt()
            cost[i, j] = float(distance) / alphas[j] ** (power / 2)
    return cost


def cheapest(cost, steps):
    """The path 0 = k₀ < k₁ < … < k_steps = last of the least sum of cost[kᵢ, kᵢ₊₁], by dynamic programming.

    Raises ValueError if there are fewer than `steps` places to go.
    """
    count = len(cost)
    if not 1 <= steps < count:
        raise ValueError(f"no path of {steps} steps through {count} times")
    least = np.full(count, np.inf)
    least[0], came = 0.0, []
    for _ in range(steps):
        total = least[:, None] + cost
        came.append(total.argmin(0))
        least = total.min(0)
    path = [count - 1]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return path[::-1]


def grids(problem, noises, steps):
    """Name → grid of `steps` steps, for each power that `costs` takes. noises: those whose trajectories are taken."""
    times, states, answers = problem.trajectory(noises.x)
    found = {}
    for power in (0, 1):
        cost = costs(problem.schedule, times, states, answers, power)
        squares = np.where(np.isfinite(cost), cost**2 * len(noises.ids), 0.0)
        whole = problem.team.total(torch.from_numpy(squares)).numpy() ** 0.5  # of all noises, but for a common factor
        path = cheapest(np.where(np.isfinite(cost), whole, np.inf), steps)
        found[f"own{power}"] = [times[k] for k in path]
    return found
