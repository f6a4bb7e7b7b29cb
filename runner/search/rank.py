"""Rank: every method on every spacing that spends the calls exactly, by its distance to the exact flow."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from pndm.config.files import aside
from pndm.runner.search.problem import better, rms
from pndm.runner.solver.events import Method
from pndm.runner.solver.grid import SPACINGS, grid_of
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.solve import steps_for

SCREENED, RANKED = 16, 128  # noises that all candidates are tried on, and the best
FINALISTS = 12  # the best candidates
SHOWN = 12  # lines of the printed table


@dataclass(frozen=True)
class Candidate:
    """A way to spend the calls. name: of its method; grid: of its times; errors: squared distances, one a noise."""

    name: str
    grid: str
    line: Method
    times: list
    errors: np.ndarray | None = None

    @property
    def label(self):
        return f"{self.name} {self.grid}".strip()

    @property
    def distance(self):
        """Root-mean-square distance and its standard error."""
        return rms(self.errors)

    def measured(self, problem, noises):
        """The candidate with its errors on `noises`."""
        return replace(self, errors=problem.errors(self.line, self.times, noises))


def candidates(schedule, calls, methods=tuple(METHODS)):
    """Every method × spacing that spends exactly `calls`; errors None."""
    for name, spacing in product(methods, SPACINGS):
        line = METHODS[name]
        if line.adaptive or line.draws():
            continue
        try:
            times = grid_of(schedule, steps_for(name, calls, schedule, spacing=spacing), spacing)
        except ValueError:  # it cannot spend them, or has no starting steps on such a grid
            continue
        yield Candidate(name, spacing, line, times)


def rank(problem, noises, found):
    """Candidates by their distance, the least first: all on the first noises, then the best on more."""
    first = noises.part(0, SCREENED)
    found = by_distance(candidate.measured(problem, first) for candidate in found)
    best = by_distance(candidate.measured(problem, noises.part(0, RANKED)) for candidate in found[:FINALISTS])
    return best + found[FINALISTS:]


def by_distance(found):
    """Candidates, the nearest to the flow first."""
    return sorted(found, key=lambda candidate: candidate.distance[0])


def indistinguishable(found):
    """Labels of those that cannot be told from the first: it is not better by more than two standard errors."""
    best = found[0]
    peers = [other for other in found[1:] if len(other.errors) == len(best.errors)]
    return [other.label for other in peers if not better(best.errors, other.errors)]


def table(found):
    """The first candidates as text."""
    same, wide = indistinguishable(found), max(len(candidate.label) for candidate in found[:SHOWN])
    lines = [f"{'':{wide}}  to the flow  ±"]
    for candidate in found[:SHOWN]:
        value, error = candidate.distance
        mark = "  not distinguishable from the first" if candidate.label in same else ""
        lines.append(f"{candidate.label:{wide}}  {value:11.4f}  {error:.4f}{mark}")
    return "\n".join(lines)


def save(found, folder):
    """Write rank.csv, a line each, and rank.png, the first of them with their errors."""
    rows = ["method,grid,distance,error,noises"]
    for candidate in found:
        value, error = candidate.distance
        rows.append(f"{candidate.name},{candidate.grid},{value:.6g},{error:.3g},{len(candidate.errors)}")
    with aside(folder / "rank.csv") as file:
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    with aside(folder / "rank.png") as file:
        picture([candidate for candidate in found if np.isfinite(candidate.distance[0])][: 2 * SHOWN], file)


def picture(found, file):
    """Bars of distances, the least on top."""
    from matplotlib.figure import Figure

    figure = Figure((6, 0.6 + 0.22 * len(found)), layout="constrained")
    panel = figure.subplots()
    values, errors = zip(*(candidate.distance for candidate in found), strict=True)
    panel.barh([candidate.label for candidate in found], values, xerr=errors, color="#56B4E9", capsize=2)
    panel.invert_yaxis()
    panel.set_xlabel("distance to the exact flow, root mean square in [−1, 1]")
    figure.savefig(file, format="png", dpi=120)
