"""What a search works on: noises, where the exact flow takes them, and how far from there a method ends."""

from dataclasses import dataclass

import numpy as np
import torch

from pndm.runner.random import noise
from pndm.runner.solver.events import Step
from pndm.runner.solver.grid import grid_of
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.solve import drive, solve

# The exact flow is followed by a multistep method whose steps are doubled until the images stay where they are.
TEACHER, SPACING, STEPS, MOST = "UniPC3-bh2", "quad", 40, 320
ACCURACY = 1e-3  # root mean square in [−1, 1]; a grey level is 8e-3
PROBES = 16  # noises that the steps are doubled for


@dataclass(frozen=True)
class Noises:
    """This process's share of noises 0 … count−1: their numbers, x (n, C, H, W), and its ends by the exact flow."""

    count: int
    ids: list
    x: torch.Tensor
    ends: torch.Tensor

    def part(self, first, count):
        """`count` of them from number `first` on, numbered from 0 again; fewer at the end."""
        count = min(count, self.count - first)
        mine = [place for place, i in enumerate(self.ids) if first <= i < first + count]
        return Noises(count, [self.ids[place] - first for place in mine], self.x[mine], self.ends[mine])

    def batches(self, size):
        """(numbers, x, ends), `size` of them at a time."""
        for first in range(0, len(self.ids), size):
            part = slice(first, first + size)
            yield self.ids[part], self.x[part], self.ends[part]


class Problem:
    """A network, its noise schedule and images, and the work that is done with them, shared by the processes of `team`.

    network(x, t): ε, t of shape (1,). shape: (C, H, W). batch: images a network call. watch(n): told the number of
    images of every call. The attribute `spent` counts image × network calls of this process. steps, known: what
    `enough_steps` found.
    """

    def __init__(self, network, schedule, shape, seed, team, batch, watch=lambda n: None):
        self.plain, self.schedule, self.shape, self.seed, self.team = network, schedule, shape, seed, team
        self.batch, self.watch, self.spent, self.steps = batch, watch, 0, None
        self.known = None

    broadcasts_time = True

    def __call__(self, x, t):
        """The network, counted."""
        self.spent += len(x)
        self.watch(len(x))
        return self.plain(x, t)

    def noises(self, count, held_out=False):
        """`count` `Noises`: those of the search, or others that are held out."""
        mine = range(self.team.rank, count, self.team.size)
        x = torch.from_numpy(noise(self.seed, mine, self.shape, "search", int(held_out))).to(self.team.device)
        if self.steps is None:
            self.steps, self.known = self.enough_steps(x[:PROBES])
        return Noises(count, list(mine), x, torch.cat([self.flow(part, self.steps) for part in x.split(self.batch)]))

    def flow(self, x, steps):
        """x at the end of the exact flow, by the teacher in so many steps."""
        *_, state = solve(TEACHER, self, x, self.schedule, steps, spacing=SPACING)
        return state.x

    def enough_steps(self, x):
        """(the teacher's steps, how well x's end is known by them): doubled until that is `ACCURACY`, `MOST` at most.

        If the order is 2, the error falls by 4 when the steps are doubled, so that it is a third of the change. Up to
        clean data no order is proved; at 1.3, the least slope measured there (docs/claims.md), it is two thirds. It is
        None of a schedule whose steps cannot be doubled.
        """
        steps, known = min(STEPS, self.schedule.diffusion_step), None
        coarse = self.flow(x, steps)
        while 2 * steps <= min(MOST, self.schedule.diffusion_step):
            steps *= 2
            fine = self.flow(x, steps)
            change, count = self.team.total(torch.tensor([squares(fine - coarse).sum(), len(x)])).tolist()
            known = (change / count) ** 0.5 / 3
            if known < ACCURACY:
                break
            coarse = fine
        return steps, known

    def trajectory(self, x):
        """The exact flow on the teacher's grid: its times, x and ε at all but the last; x at the last, on the CPU."""
        grid = grid_of(self.schedule, self.steps, SPACING)
        states, answers = [x.cpu()], []

        def answer(query):
            answers.append(self(query.x, query.x.new_tensor([query.t])))
            return answers[-1]

        for event in drive(METHODS[TEACHER].trajectory(x, self.schedule, grid), answer):
            if isinstance(event, Step):
                states.append(event.x.cpu())
        return grid, torch.stack(states), torch.stack(answers).cpu()

    def errors(self, line, times, noises):
        """Mean squared distances to the flow of a method on `times`, one for each noise: float64 (count,).

        Infinite where an image is not finite.
        """
        found = torch.zeros(noises.count, dtype=torch.float64)
        for ids, x, ends in noises.batches(self.batch):
            *_, state = solve(line, self, x, self.schedule, 1, times=times)
            found[ids] = squares(state.x - ends)
        return self.team.total(found).nan_to_num(nan=np.inf, posinf=np.inf).numpy()

    def run(self, line, times, x, known=()):
        """x at the end of a run, and the ε's of its calls. known: those of the first calls, which are not made."""
        answers, ready = list(known), iter(known)

        def answer(query):
            eps = next(ready, None)
            if eps is None:
                answers.append(eps := self(query.x, query.x.new_tensor([query.t])))
            return eps

        for event in drive(line.trajectory(x, self.schedule, times), answer):
            if isinstance(event, Step):
                end = event.x
        return end, answers


def squares(difference):
    """Mean squares of each image: float64 (n,) on the CPU."""
    return difference.cpu().double().square().flatten(1).mean(1)


def rms(errors):
    """(root mean square, its standard error) of squared distances."""
    value = np.sqrt(np.mean(errors))
    if not np.isfinite(value):
        return np.inf, np.inf
    return float(value), float(np.std(errors, ddof=1) / len(errors) ** 0.5 / (2 * value))


def better(errors, others):
    """Whether squared distances are less than others of the same noises, by more than two standard errors."""
    if not np.isfinite([errors, others]).all():
        return bool(np.isfinite(errors).all())
    gain = others - errors
    return bool(np.mean(gain) > 2 * np.std(gain, ddof=1) / len(gain) ** 0.5)
