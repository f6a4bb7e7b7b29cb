"""The solver by gradients: Levenberg–Marquardt over all numbers of a `Tabulated` and its times, in minibatches.

The loss is of the distance r to the exact flow at the end: c² log(1 + r²/c²), Cauchy's robust one. It is r² of small
distances. A few noises end in another image than the flow; their r², hundreds of times that of the others, would decide
all, and differently for every set of noises.

A solver has few numbers (24 of 5 calls, 74 of 10), so that the derivative of the end by each of them is affordable, and
a step by all of them (Gauss–Newton) does what hundreds of steps by the gradient of the loss do. A derivative is a
difference of two runs. The second one begins at the first call that the number changes. So nothing is kept for a
backward pass. Beside the memory of sampling there are the derivatives of a minibatch's images by each number, twice, in
float64 (0.9 GB of 74 numbers and 256 images of 3×32×32). The robust loss weights each noise by 1/(1 + r²/c²) (Holland &
Welsch 1977, "Robust regression using iteratively reweighted least-squares").

Every minibatch leaves its quadratic model of the loss. The step minimises the sum of the newest models of all
minibatches, as in the incremental Gauss–Newton method (Bertsekas 1996, "Incremental least squares methods and the
extended Kalman filter"). It is accepted if it is better on this minibatch and the next together.
"""

from itertools import count

import numpy as np
import torch

from pndm.runner.solver.tabulated import Tabulated

DIFFERENCE = 1e-3  # of a number, for its derivative
DAMPING, MOST, TRIES = 1e-2, 10.0, 3  # first and largest damping; how often a step is damped further until it is better


class Parameters:
    """A solver of N calls as a vector: λ of its inner times, λ of the told times, the weights row by row.

    λ is the half log-SNR. schedule: a `Schedule`. start, end: the first and last time, which stay.
    """

    def __init__(self, schedule, calls, start, end):
        self.schedule, self.calls, self.start, self.end = schedule, calls, start, end
        self.limits = schedule.half_log_snr(np.array([schedule.diffusion_step - 1.0, 0.0]))
        rows = [i for i in range(calls) for _ in range(i + 1)]
        # The number of calls that are made before a number has an effect.
        self.before = [*range(1, calls), *range(calls), *(i + 1 for i in rows)]

    def vector(self, line, times):
        """The numbers of a `Tabulated` on `times`, float64."""
        levels = self.schedule.half_log_snr(np.array([*times[1:-1], *line.told]))
        return self.within(np.concatenate([levels, *line.weights]))

    def solver(self, vector):
        """(`Tabulated`, times) of a vector; None where the times do not fall."""
        n = self.calls
        inner, told = np.split(np.maximum(self.schedule.time(vector[: 2 * n - 1]), 0), [n - 1])
        times = [self.start, *inner.tolist(), self.end]
        if not np.all(np.diff(times) < 0):  # nor where they are not numbers
            return None
        rows = np.split(vector[2 * n - 1 :], np.cumsum(range(1, n)))
        return Tabulated(tuple(tuple(row.tolist()) for row in rows), tuple(told.tolist())), times

    def within(self, vector):
        """The vector with the λ's at training steps, 0 … N−1."""
        levels, weights = np.split(vector, [2 * self.calls - 1])
        return np.concatenate([levels.clip(*self.limits), weights])

    def nudged(self, vector, k):
        """(the vector's solver with number k changed a little, the change); None where nothing is possible."""
        for step in (DIFFERENCE, -DIFFERENCE, DIFFERENCE / 1000):
            moved = vector.copy()
            moved[k] += step
            if np.array_equal(moved, self.within(moved)) and (solver := self.solver(moved)):
                return solver, step
        return None


def derivatives(problem, parameters, vector, x, ends, scale=np.inf):
    """JᵀWJ (p, p) and JᵀWr (p,) of the residuals r = x's end − the flow's, float64; J = dr/dvector.

    scale: c of the loss, which the weights W follow from; without, they are 1.
    """
    end, answers = problem.run(*parameters.solver(vector), x)
    residuals = exact(end - ends).flatten(1)
    weights = (1 / (1 + residuals.square().mean(1, keepdim=True) / scale**2)).expand_as(residuals).flatten()
    columns = []
    for k, calls in enumerate(parameters.before):
        nudged = parameters.nudged(vector, k)
        if nudged is None:  # between two times that almost meet: it stays
            columns.append(residuals.new_zeros(end.numel()))
            continue
        solver, step = nudged
        moved, _ = problem.run(*solver, x, answers[:calls])
        columns.append(exact(moved - end).flatten() / step)
    jacobian = torch.stack(columns)
    return ((jacobian * weights) @ jacobian.T).cpu(), (jacobian @ (weights * residuals.flatten())).cpu()


def exact(x):
    """x in float64: where it is, or on the CPU if its device may have no float64, as Apple's GPUs."""
    return (x if x.device.type in ("cpu", "cuda") else x.cpu()).double()


def loss(problem, parameters, vector, minibatches, scale):
    """The mean loss over all minibatches; infinite where the times do not fall."""
    solver = parameters.solver(vector)
    if solver is None:
        return np.inf
    errors = np.concatenate([problem.errors(*solver, noises) for noises in minibatches])
    return scale**2 * np.mean(np.log1p(errors / scale**2))


def fit(problem, parameters, vector, minibatches, scale):
    """Improve a vector step by step, for ever: yields (vector, root of the loss on the minibatches that judged it).

    minibatches: a list of `Noises` of one size. scale: c of the loss.
    """
    models, damping = {}, DAMPING
    for number in count():
        here, *_ = judges = [minibatches[(number + i) % len(minibatches)] for i in range(min(2, len(minibatches)))]
        parts = [derivatives(problem, parameters, vector, x, ends, scale) for _, x, ends in here.batches(problem.batch)]
        normal, slope = (problem.team.total(torch.stack(sums).sum(0)).numpy() for sums in zip(*parts, strict=True))
        models[number % len(minibatches)] = normal, normal @ vector - slope
        normal, target = (sum(parts) for parts in zip(*models.values(), strict=True))
        diagonal = np.diag(normal) + 1e-12 * np.trace(normal)
        least = loss(problem, parameters, vector, judges, scale)
        for _ in range(TRIES):
            tried = np.linalg.solve(normal + np.diag(damping * diagonal), target + damping * diagonal * vector)
            tried = parameters.within(tried)
            tried = problem.team.broadcast(torch.from_numpy(tried), 0).numpy()  # that of one machine for all
            if (value := loss(problem, parameters, tried, judges, scale)) < least:
                vector, least, damping = tried, value, damping / 3
                break
            damping = min(5 * damping, MOST)
        yield vector, float(least) ** 0.5
