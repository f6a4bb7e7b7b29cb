"""The keys of a solver file (config/solvers/*.yml): a sampler for one network and number of calls, made by a search."""

import hashlib
import json
from itertools import pairwise
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from pndm.config.errors import InputError
from pndm.config.files import aside
from pndm.config.keys import Contradiction, Section, key, needed
from pndm.config.schema import ScheduleSection
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.schedule import Schedule

MOST_CALLS = 1000  # network calls of a solver file
SEARCHED = "searched"  # the method of a file with a table of weights
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Solver(Section):
    method: str = needed(f"{SEARCHED}, whose weights are in the file, or a name in METHODS")
    calls: int = needed("network calls an image", ge=1, le=MOST_CALLS)
    times: list[float] = needed("times of the noise levels; they fall, and a last −1 is clean data")
    weights: list[list[float]] | None = key(None, f"{SEARCHED}: of every step those of the ε's so far, newest first")
    told: list[float] | None = key(None, f"{SEARCHED}: the time that the network is told in each call")
    schedule: ScheduleSection = needed("the noise schedule of the network")
    network: Digest | None = key(None, "sha256 of the checkpoint that it was searched on; null: any")
    found: dict[str, Any] = key({}, "how it was found, and its errors on held-out noise")

    @model_validator(mode="after")
    def _consistent(self):
        searched, last = self.method == SEARCHED, self.schedule.diffusion_step - 1
        if len(self.times) < 2 or any(later >= t for t, later in pairwise(self.times)):
            raise Contradiction("times must be two or more and fall", "times")
        if not searched and (self.method not in METHODS or METHODS[self.method].adaptive):
            raise Contradiction(f"method {self.method!r} is neither {SEARCHED} nor a method of given times", "method")
        for name in ("weights", "told"):
            if (getattr(self, name) is None) == searched:
                raise Contradiction(f"{name}: {'missing' if searched else f'only of method {SEARCHED}'}", name)
        if searched:
            steps = len(self.times) - 1
            if [len(row) for row in self.weights] != list(range(1, steps + 1)):
                raise Contradiction(f"weights must be {steps} rows of 1, 2, … {steps} numbers", "weights")
            if len(self.told) != steps or not all(0 <= t <= last for t in self.told):
                raise Contradiction(f"told must be {steps} times from 0 to {last}", "told")
        from pndm.runner.solver.solve import network_calls  # imports PyTorch, which `--help` need not wait for

        try:
            counted = network_calls(self.line, self.noise_schedule, 1, times=self.times)
        except ValueError as error:
            raise Contradiction(str(error), "times") from None
        if counted != self.calls:
            raise Contradiction(f"calls is {self.calls}, but the method makes {counted} on these times", "calls")
        return self

    @property
    def line(self):
        """The method: a line like those of `METHODS`."""
        from pndm.runner.solver.tabulated import Tabulated

        if self.method != SEARCHED:
            return METHODS[self.method]
        return Tabulated(tuple(map(tuple, self.weights)), tuple(self.told))

    @property
    def noise_schedule(self):
        """The `Schedule`."""
        s = self.schedule
        return Schedule(s.type, s.beta_start, s.beta_end, s.diffusion_step)

    @property
    def digest(self):
        """sha256 of all that decides images."""
        return hashlib.sha256(json.dumps([self.method, self.times, self.weights, self.told]).encode()).hexdigest()

    def check_schedule(self, schedule, name):
        """Raise InputError unless the solver is of this `Schedule`; name: of the file."""
        if not self.noise_schedule.alike(schedule):
            raise InputError(f"{name} is of another noise schedule than the network's", "Sample.solver")

    def check_network(self, digest, name, remedy):
        """Raise InputError unless the solver is of the network with this sha256; name: of the file."""
        if self.network not in (None, digest):
            held = f"{self.network[:12]}…, this one is {digest[:12]}…"
            message = f"{name} was searched on another network (sha256 {held}); search one for this network"
            raise InputError(f"{message}, or {remedy}", "Sample.solver")


class _Dumper(yaml.SafeDumper):
    """A list of numbers stands on one line."""


_Dumper.add_representer(
    list,
    lambda dumper, rows: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", rows, flow_style=not any(isinstance(row, list) for row in rows)
    ),
)


def save_solver(path, solver):
    """Write a `Solver` as YAML, whole or not at all."""
    tree = solver.model_dump(exclude_none=True)
    with aside(path) as file:
        file.write_text(
            yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=118, allow_unicode=True), encoding="utf-8"
        )
