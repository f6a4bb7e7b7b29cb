"""Find the best sampler for a network and a number of network calls.

    python main.py --runner search --nfe 8
    torchrun --nproc_per_node=2 main.py --runner search --config fashion.yml --nfe 5

No data is needed. The methods are ranked by their distance to the exact flow, the best get a grid of the network's own,
the best of all is the start of the fit of times and weights. What beats all before it on held-out noise is written as a
solver file, for --solver. docs/search.md explains it. The folder also gets rank.csv, rank.png and search.json.
"""

import contextlib
import hashlib
import pickle
import shlex
import time
from pathlib import Path

import numpy as np
import torch

from pndm.config.errors import InputError
from pndm.config.files import aside, made, save_json
from pndm.config.load import load_solver, replaced, words_of
from pndm.config.solver import MOST_CALLS, SEARCHED, Solver, save_solver
from pndm.dataset import decode
from pndm.runner import sample
from pndm.runner.build import OF_SOLVE, load_network, schedule_of
from pndm.runner.measure.measurement import describe
from pndm.runner.processes import processes
from pndm.runner.progress import Progress
from pndm.runner.random import noise
from pndm.runner.search import rank
from pndm.runner.search.fit import Parameters, fit
from pndm.runner.search.grid import grids
from pndm.runner.search.guard import judged
from pndm.runner.search.problem import ACCURACY, TEACHER, Noises, Problem
from pndm.runner.search.rank import Candidate, by_distance
from pndm.runner.solver.events import NotFinite
from pndm.runner.solver.grid import SPACINGS
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.solve import solve
from pndm.runner.solver.tabulated import tabulate

NOISES = 1024  # that are searched on
MINIBATCHES = 8
TRAJECTORIES = 16  # noises whose whole flow the grid is made of
ON_OWN_GRID = 6  # methods that are tried on it
STARTS = 2  # of the fit; the one that is best after a step goes on
MINIBATCH_CALLS = 600  # network calls that the fit may make for each noise, in minibatches
WHOLE_CALLS = 300  # and with all noises at once
ENOUGH = 0.99  # a fit has settled when a round of minibatches has more than this share of the round's loss before
SCALE = 3  # of the fit's loss, in median distances of its start
JUDGED = rank.FINALISTS  # built-in candidates that are measured on held-out noise


def run(experiment, name, device, folder, methods=None, noises=None, minutes=None, timeout=None, overrides=None):
    """Search for `experiment` (a validated `Experiment`) at Sample.nfe calls; writes `folder`, returns the `Solver`.

    name, overrides: of the experiment's file, and what was set in it, as `load` takes it; for the record.
    methods: names of METHODS with commas between them; None: all. noises: how many are searched on; half as many are
    held out. minutes: after which the fit ends. Raises InputError before anything is written.
    """
    s, folder = experiment.Sample, Path(folder)
    if s.nfe is None:
        raise InputError("a search needs a number of network calls", "nfe")
    if s.nfe > MOST_CALLS:
        raise InputError(f"{s.nfe:,} network calls are more than a solver file has, {MOST_CALLS:,}", "nfe")
    names = tuple(METHODS) if methods is None else tuple(name.strip() for name in methods.split(","))
    if unknown := [word for word in names if word not in METHODS]:
        raise InputError(f"{unknown[0]!r} is not one of {', '.join(METHODS)}", "methods")
    if experiment.Schedule.type == "edm":
        raise InputError("type is edm; a solver file has times of training, linear or cosine", "Schedule.type")
    overrides = overrides or {}
    own = {f"Sample.{name}" for name in (*OF_SOLVE, "method", "profile")}
    chosen = [key for key, (flag, _) in overrides.items() if flag and key in own]
    if chosen:
        raise InputError(f"a search chooses the method and its times itself; leave out {chosen[0]}", chosen[0])
    words = words_of(overrides, methods=methods, noises=noises, time=minutes)
    command = shlex.join(["python", "main.py", "--runner", "search", "--config", name, *words])
    noises = NOISES if noises is None else noises
    if noises < 2 * MINIBATCHES:
        raise InputError(f"{noises} are too few; at least {2 * MINIBATCHES}", "noises")
    found = list(rank.candidates(schedule_of(experiment), s.nfe, names))
    if not found:
        message = f"none of {', '.join(names)} can spend {s.nfe} network calls; methods that draw noise or choose "
        raise InputError(f"{message}their own steps are not searched", "nfe")
    with processes(device, timeout) as team:
        if team.size > (most := min(TRAJECTORIES, noises // MINIBATCHES)):
            raise InputError(f"{noises} can be shared by {most} processes at most, not by {team.size}", "noises")
        loaded = load_network(experiment, team.device, "fp32")  # differences would be lost in less
        refuse_other(folder, loaded.record["sha256"], s.nfe)
        if s.batch_size == "auto":
            experiment = replaced(experiment, batch_size=sample.fitting(experiment, loaded.network, team))
        with made(folder), torch.inference_mode(), Progress(team, None, " image×calls", "search") as progress:
            solver = Search(experiment, loaded, team, folder, progress, minutes, command).run(found, noises)
    if solver:
        path = str(folder / "solver.yml")
        words = words_of({key: value for key, value in overrides.items() if key != "Sample.nfe"}, solver=path)
        print(f"{path}: {shlex.join(['python', 'main.py', '--runner', 'sample', '--config', name, *words])}")
    return solver


def refuse_other(folder, network, calls):
    """Raise InputError if a folder holds the solver of another network (its sha256), or of other calls."""
    if (folder / "solver.yml").exists():
        try:
            held = load_solver(folder / "solver.yml")
        except InputError as error:
            raise InputError(f"{error}; choose another folder", "search_path") from None
        if (held.network, held.calls) != (network, calls):
            message = f"{folder} holds the solver of another network, or of other calls; choose another folder"
            raise InputError(message, "search_path")


def settled(values, size):
    """Whether a fit with these losses, one a step, all but stands; a round of `size` steps is of the same noises."""
    *_, last = rounds = [values[i : i + size] for i in range(0, len(values), size)]
    return len(rounds) > 1 and len(last) == size and sum(last) > ENOUGH * sum(rounds[-2])


def until_settled(going, size, values=()):
    """The (vector, loss) that a fit yields, until it has settled. values: the losses of the steps before."""
    values = list(values)
    for vector, value in going:
        yield vector, value
        values.append(value)
        if settled(values, size):
            return


class Search:
    """One search: its network, noises, and what is said about it."""

    def __init__(self, experiment, loaded, team, folder, progress, minutes, command):
        self.experiment, self.loaded, self.team, self.folder = experiment, loaded, team, folder
        self.begun, self.minutes, self.progress, self.command = time.monotonic(), minutes, progress, command
        shape, s = experiment.Dataset.shape, experiment.Sample
        self.calls, self.schedule = s.nfe, schedule_of(experiment)
        self.problem = Problem(loaded.network, self.schedule, shape, s.seed, team, s.batch_size, self.watch)

    def watch(self, count):
        """Count image × network calls."""
        self.team.beat()
        self.progress.add(count)

    def say(self, text):
        """Print, by the first process alone."""
        if self.team.first:
            seconds = time.monotonic() - self.begun
            print(f"[{seconds:5.0f} s] {text}", flush=True)

    def run(self, found, noises):
        """The stages, one after another."""
        problem = self.problem
        pool, held_out = self.noises(noises), self.noises(noises // 2, held_out=True)
        self.say(f"the exact flow of {noises} + {noises // 2} noises, by {self.yardstick()}")
        found = rank.rank(problem, pool, found)
        if not np.isfinite(found[0].distance[0]):
            raise NotFinite("no method ends in finite images with this network")
        if self.team.first:
            rank.save(found, self.folder)
        self.say(f"rank of {len(found)} candidates at {self.calls} calls:\n{rank.table(found)}")
        own = self.on_own_grids(found, pool)
        starts = [start for start in by_distance(found[: rank.FINALISTS] + own) if self.start(start)][:STARTS]
        fitted = self.fitted(starts, pool) if starts and self.calls > 1 else []
        winner, measured, refused = judged(problem, held_out, [found[:JUDGED], own, fitted])
        for candidate in measured:
            self.say(f"held out: {candidate.label}, {candidate.distance[0]:.4f} ± {candidate.distance[1]:.4f}")
        for candidate in refused:
            self.say(f"refused: {candidate.label} is not better on held-out noise by more than its error")
        return self.write(winner, measured, pool.count, held_out.count)

    def spent(self):
        """Image × network calls of all processes so far."""
        return int(self.team.total(torch.tensor(float(self.problem.spent), dtype=torch.float64)))

    def noises(self, count, held_out=False):
        """`Noises`, from the cache beside the folder if an earlier search followed their flow."""
        sections = self.experiment.Schedule, self.experiment.Model, self.problem.shape
        key = repr((self.loaded.record["sha256"], *sections, self.problem.seed, count, held_out))
        name = f"flow_{hashlib.sha256(key.encode()).hexdigest()[:12]}_{self.team.rank}of{self.team.size}.pt"
        path = self.folder.parent / name
        try:
            kept = torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
            kept = None
        if not self.team.least(torch.tensor(float(kept is not None))):  # the processes follow a flow together
            found = self.problem.noises(count, held_out)
            known = {"steps": self.problem.steps, "known": self.problem.known}
            with contextlib.suppress(OSError, RuntimeError), aside(path) as file:  # it is a cache: the search goes on
                torch.save(known | {"x": found.x, "ends": found.ends}, file)
            return found
        self.problem.steps, self.problem.known = kept["steps"], kept.get("known")
        x, ends = (kept[part].to(self.team.device) for part in ("x", "ends"))
        return Noises(count, list(range(self.team.rank, count, self.team.size)), x, ends)

    def yardstick(self):
        """What the exact flow is followed by, and how well it is known."""
        known = self.problem.known
        how = "not known how well" if known is None else f"known to {known:.1g}"
        enough = known is not None and known < ACCURACY
        return f"{TEACHER} in {self.problem.steps} steps, {how}" + f", {ACCURACY:g} is wanted" * (not enough)

    def on_own_grids(self, found, pool):
        """The best built-in methods on grids of the network's own, measured. They are parts of the teacher's."""
        if self.calls > self.problem.steps:
            return []
        few, tried = pool.part(0, TRAJECTORIES), []
        own = grids(self.problem, few, self.calls)
        for name in list(dict.fromkeys(candidate.name for candidate in found))[:ON_OWN_GRID]:
            if len(next(c for c in found if c.name == name).times) != self.calls + 1:
                continue  # not one call a step
            tried += [Candidate(name, grid, METHODS[name], times) for grid, times in own.items()]
        tried = by_distance(c.measured(self.problem, pool.part(0, rank.RANKED)) for c in tried)
        if tried:
            self.say(f"own grids:\n{rank.table(tried)}")
        return tried[:1]

    def start(self, candidate):
        """(parameters, vector) of a fit from a candidate; None where its method is no table."""
        try:
            line = tabulate(candidate.line, self.schedule, candidate.times)
            parameters = Parameters(self.schedule, self.calls, candidate.times[0], candidate.times[-1])
            return parameters, parameters.vector(line, candidate.times)
        except ValueError:
            return None

    def fitted(self, starts, pool):
        """The solver that the fit ends with, in a list; empty if it was interrupted before its first step."""
        size = pool.count // MINIBATCHES
        minibatches = [pool.part(i * size, size) for i in range(MINIBATCHES)]
        whole = pool.part(0, size * MINIBATCHES)
        best, runs, before = None, [], self.spent()
        scale = SCALE * float(np.sqrt(np.median(starts[0].errors)))
        try:
            for candidate in starts:
                parameters, vector = self.start(candidate)
                going = fit(self.problem, parameters, vector, minibatches, scale)
                vector, value = next(going)
                runs.append((value, len(runs), parameters, vector, going))
                best = min(runs, key=lambda run: run[0])[2:4]
                self.say(f"fit from {candidate.label}: {value:.4f} after a step")
            run = min(runs, key=lambda run: run[0])
            for number, (vector, value) in enumerate(self.steps(run, whole, scale, before), 2):
                best = run[2], vector
                self.say(f"fit, step {number}: {value:.4f}")
                late = self.minutes is not None and time.monotonic() - self.begun > 60 * self.minutes
                if self.team.any(late):
                    break
        except KeyboardInterrupt:
            if self.team.size > 1 or best is None:
                raise
            self.say("interrupted: the best so far is judged and written")
        parameters, vector = best
        line, times = parameters.solver(vector)
        return [Candidate(SEARCHED, "", line, times)]

    def steps(self, run, whole, scale, before):
        """(vector, loss) of the steps of a fit that has begun: by minibatches until they settle, then by all noises.

        before: the calls that had been spent when the fit began.
        """
        first, _, parameters, vector, going = run
        for vector, value in until_settled(going, MINIBATCHES, [first]):
            yield vector, value
            if self.spent() - before > MINIBATCH_CALLS * whole.count:
                break
        going = fit(self.problem, parameters, vector, [whole], scale)
        for vector, value in until_settled(going, 1):
            yield vector, value
            if self.spent() - before > (MINIBATCH_CALLS + WHOLE_CALLS) * whole.count:
                break

    def frechet(self, candidate):
        """The distance to the data of Sample.total_num images, in words; None where there is no reference."""
        data, s = self.experiment.Dataset, self.experiment.Sample
        try:
            measurement = sample.measurement_of(self.experiment, self.team)
        except InputError as error:
            self.say(f"no distance to the data: {error}")
            return None
        if measurement is None:
            return None
        for first in self.team.deal(range(0, s.total_num, s.batch_size)):
            ids = range(s.total_num)[first : first + s.batch_size]
            x = torch.from_numpy(noise(s.seed, ids, self.problem.shape)).to(self.team.device)
            *_, state = solve(candidate.line, self.problem, x, self.schedule, 1, times=candidate.times)
            measurement.update(ids, decode(state.x, data))
        measurement.gather(self.team)
        if not self.team.first:
            return None
        card = measurement.card()
        self.say(f"{candidate.label}: {describe(card)}")
        spread = "" if card["error"] is None else f" ± {card['error']:.4f}"
        return f"{card['value']:.4f}{spread}, {s.total_num} images"

    def write(self, winner, measured, noises, held_out):
        """Write the winner's solver file and search.json; the first process returns the `Solver`."""
        builtin = next(c for c in by_distance(measured) if c.name != SEARCHED and c.grid in SPACINGS)
        compared = {c.label: c for c in (builtin, winner)}  # they may be the same
        frechet = {}
        try:
            for label, candidate in compared.items():
                frechet[label] = self.frechet(candidate)
        except KeyboardInterrupt:
            if self.team.size > 1:
                raise
            self.say("interrupted: written without its distance to the data")
        (value, error), (other, other_error) = winner.distance, builtin.distance
        found = {
            "command": self.command,
            "seed": self.problem.seed,
            "noises": f"{noises} searched on, {held_out} held out",
            "flow": self.yardstick(),
            "to_the_flow": f"{value:.4f} ± {error:.4f}",
            "best_built_in": f"{builtin.label}, {other:.4f} ± {other_error:.4f}",
            "image_calls": self.spent(),
            "seconds": round(time.monotonic() - self.begun),
        } | {f"frechet {label}": text for label, text in frechet.items() if text}
        line = winner.line
        table = {"weights": list(map(list, line.weights)), "told": list(line.told)} if winner.name == SEARCHED else {}
        solver = Solver(
            method=winner.name,
            calls=self.calls,
            times=winner.times,
            **table,
            schedule=self.experiment.Schedule.model_dump(),
            network=self.loaded.record["sha256"],
            found=found,
        )
        if not self.team.first:
            return None
        save_solver(self.folder / "solver.yml", solver)
        records = [{"label": c.label, "to_the_flow": c.distance, "times": c.times} for c in measured]
        save_json(self.folder / "search.json", {"winner": winner.label, "held_out": records, "found": found})
        self.say(f"{winner.label}: {value:.4f} ± {error:.4f} to the flow, {value / other:.2f} of {builtin.label}'s")
        return solver
