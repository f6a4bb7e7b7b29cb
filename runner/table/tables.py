"""The tables that are made of rows, and the words that explain them; `report` writes both as Markdown and HTML."""

import math
import statistics
from dataclasses import dataclass

from scipy.special import stdtrit

from pndm.runner.solver.published import PROFILES
from pndm.runner.table.results import best, nearest

MEANING = {
    "exact": "exact is what the paper says",
    "published": "published is what the released code does, quirks included (docs/methods.md lists them)",
}
CLOSE = 1.05  # a distance is as near as another up to this factor
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class ResultTable:
    """A table. body: rows of texts. bold: (row, column) of the entries that stand out. notes: sentences below it."""

    title: str
    head: list
    body: list
    bold: frozenset = frozenset()
    notes: tuple = ()


def tables_of(table, rows, flow=()):
    """The `ResultTable`s of a table's `Row`s, those without lines left out.

    table: the `Table`. flow: distances to the exact flow, dicts with label, budget, rms, images.
    """
    unit = "network calls" if table.by_calls else "steps"
    budgets = sorted({row.budget for row in rows if row.budget})
    most = max((row.seeds for row in rows), default=0)
    found = []
    for profile in dict.fromkeys(row.profile for row in rows):
        mine = [row for row in rows if row.profile == profile]
        found += [_distances(mine, profile, unit, budgets, most), _adaptive(mine, profile, most)]
    found += [_beside_the_paper(table, rows), _seconds(table.paper, rows), _to_the_flow(flow, unit)]
    found += [_as_good_as_the_best(rows, unit), _as_near_as_ddim(rows), _published_minus_exact(rows, unit)]
    return [made for made in found if made.body]


def explanation(table, rows, flow=()):
    """What the words in the tables mean: paragraphs."""
    called = next((row.called for row in rows if row.called), "No distance was measured")
    spread = "standard error over the images"
    if any(row.seeds > 1 for row in rows):
        spread = f"standard deviation over the seeds; with one seed it is the {spread}"
    said = [MEANING[name] for name in dict.fromkeys(row.profile for row in rows)]
    lines = [
        f"{called}, {rows[0].images:,} images a cell. A cell is one sampling run: one method, number of steps, profile "
        "and seed. A network call is one evaluation of ε for one image; calls are counted for each image. The profile "
        f"says which formulas are used: {'; '.join(said)}.",
        f"± is the {spread}. Bold: the least of its column, over the seeds that all in it have.",
    ]
    most = max(row.seeds for row in rows)
    if any(row.seeds < most for row in rows):
        lines.append(
            f"A number raised behind the distance is that of its seeds, where they are fewer than {most}. With other "
            "seeds it would differ by about ±, so compare it closely with means over the same seeds alone."
        )
    if any(row.nfe < (row.budget or 0) for row in rows) and table.by_calls:
        lines.append(
            "Some methods cannot make exactly the number of calls at the head of a column. The calls that they make "
            "stand in brackets. A run that fits several columns stands in the first."
        )
    if flow:
        lines.append(
            "The exact flow is the solution of the probability flow equation from the same noise, begun at the time at "
            "which the method begins (of ten uniform steps t = 900)."
        )
    return lines


def value(row, most=0):
    """A row's distance and spread as text; "" for none. With fewer than `most` seeds their number is raised behind."""
    if row is None or row.distance is None:
        return ""
    digits = _digits(row.distance, row.spread)
    spread = "" if row.spread is None else f" ± {row.spread:.{digits}f}"
    seeds = f" {row.seeds}".translate(RAISED) if row.seeds < most else ""
    return f"{row.distance:.{digits}f}{spread}{seeds}"


def _digits(distance, spread=None):
    return 2 if distance >= 1 and not 0 < (spread or 0) < 0.01 else 4


def crossed(title, entries, labels, budgets, least=()):
    """A `ResultTable`, labels down and budgets across. entries: (label, budget) → text. least: the keys in bold."""
    body, bold = [], set()
    for i, label in enumerate(labels):
        body.append([label, *(entries.get((label, budget), "") for budget in budgets)])
        bold |= {(i, j) for j, budget in enumerate(budgets, 1) if (label, budget) in least}
    return ResultTable(title, ["method", *map(str, budgets)], body, frozenset(bold))


def _distances(rows, profile, unit, budgets, most):
    rows = [row for row in rows if row.budget]
    labels = list(dict.fromkeys(row.label for row in rows))
    entries = {}
    for row in rows:
        fewer = f" ({row.nfe:g})" if unit == "network calls" and row.nfe < row.budget else ""
        entries[row.label, row.budget] = value(row, most) + fewer
    least = {(row.label, budget) for budget, row in best(rows).items()} if len(labels) > 1 else ()
    return crossed(f"Profile {profile}, by {unit}:", entries, labels, budgets, least)


def _adaptive(rows, profile, most):
    body = [[row.label, f"{row.nfe:.1f}", value(row, most)] for row in rows if not row.budget]
    return ResultTable(f"Profile {profile}, adaptive steps:", ["method", "network calls", "distance"], body)


def _beside_the_paper(table, rows):
    """Our distances beside the paper's, where those are known; of several seeds the least, too."""
    paper, several = table.paper, any(len(row.by_seed) > 1 for row in rows)
    title = f"Beside the distances of {paper.source}, where they are known; basis: how they are known:"
    least = ["least"] * several
    head = ["method", "profile", "steps", "network calls", "ours", *least, "paper", "basis", "difference"]
    body = []
    for row in rows if paper.fid else ():
        known = paper.fid.get(row.label, {}).get(row.nfe if table.by_calls else row.steps)
        apart = f"{row.distance - known.value:+.2f}" if known and row.called == "FID" else ""  # of like from like
        theirs = [f"{known.value}", known.basis, apart] if known else ["", "", ""]
        least = [f"{min(row.by_seed.values()):.2f}" if row.by_seed else ""] * several
        ours = [row.label, row.profile, str(row.steps or "adaptive"), f"{row.nfe:.4g}", value(row), *least]
        body.append([*ours, *theirs])
    notes = [
        f"The paper's best of {label}, at a number of steps not known here: {values['best'].value} "
        f"({values['best'].basis})."
        for label, values in paper.fid.items()
        if "best" in values
    ]
    return ResultTable(title, head, body, notes=tuple(notes))


def _seconds(paper, rows):
    title = (
        "Seconds a step of 512 images, over 50 steps. Our seconds, of runs with the batch of the third "
        "column, include computing features and writing files. The paper's are of one batch on an RTX 3090:"
    )
    body = [
        [row.label, row.profile, str(row.batch), f"{row.seconds_per_step:.3f}", f"{paper.seconds_per_step[row.label]}"]
        for row in rows
        if row.steps == 50 and row.label in paper.seconds_per_step
    ]
    return ResultTable(title, ["method", "profile", "batch", "ours", "paper"], body)


def _to_the_flow(flow, unit):
    images = f"{flow[0]['images']} images" if flow else ""
    title = f"Distance to the exact flow, profile exact, by {unit}: root mean square over {images} in [−1, 1]:"
    entries = {(entry["label"], entry["budget"]): f"{entry['rms']:.2g}" for entry in flow}
    least = {(entry["label"], budget) for budget, entry in nearest(flow).items()}
    labels = dict.fromkeys(entry["label"] for entry in flow)
    return crossed(title, entries, labels, sorted({entry["budget"] for entry in flow}), least)


def _as_good_as_the_best(rows, unit):
    """For each budget the best, and the methods that cannot be told from it."""
    body = []
    for budget, least in sorted(best(rows).items()):
        others = [row for row in rows if (row.budget, row.profile) == (budget, least.profile) and row is not least]
        others = sorted((row for row in others if row.distance is not None), key=lambda row: row.distance)
        equal = ", ".join(row.label for row in others if _as_good(row, least))
        if others:
            body.append([str(budget), least.label, value(least), equal or "none"])
    title = f"The best by {unit}, profile {rows[0].profile}, and the methods that cannot be told from it:"
    note = (
        "As good: not worse from the same noise, by a one-sided t-test at 5 % over the seeds that both have. With one "
        "such seed: worse by at most the best's standard error over its images, which is a wide margin."
    )
    return ResultTable(title, [unit, "best", "distance", "as good"], body, notes=(note,))


def _as_good(row, least):
    """Whether a row is not worse than the best as far as can be told; seed by seed where they share two or more."""
    seeds = row.by_seed.keys() & least.by_seed.keys()
    worse = [row.by_seed[seed] - least.by_seed[seed] for seed in seeds]
    if len(worse) < 2:
        return row.over(seeds) - least.over(seeds) <= (least.error or 0)
    margin = stdtrit(len(worse) - 1, 0.95) * statistics.stdev(worse) / len(worse) ** 0.5
    return statistics.fmean(worse) <= margin


def _as_near_as_ddim(rows):
    """The fewest calls in which each method comes close to DDIM in its most steps."""
    head = ["method", "steps", "network calls", "distance"]
    mine = [row for row in rows if row.called and row.profile == rows[0].profile]
    first = [row for row in mine if row.label == "DDIM" and row.steps]
    if len(first) < 2:
        return ResultTable("", head, [])
    target = max(first, key=lambda row: row.steps)
    body = []
    for label in dict.fromkeys(row.label for row in mine):
        able = [row for row in mine if row.label == label and _close(row, target)]
        least = min(able, key=lambda row: row.nfe, default=target)
        if least is not target:
            steps = str(least.steps or "adaptive")
            distance, _ = _paired(least, target)
            shown = f"{distance:.{_digits(distance)}f}"
            body.append([label, steps, f"{least.nfe:.4g}", shown, _beside(least.nfe, target.nfe)])
    title = (
        f"The fewest calls, of those that were run, for a distance at most {CLOSE - 1:.0%} above DDIM's in "
        f"{target.steps} steps, {value(target)}, from the same noise, over the seeds that both have; profile "
        f"{target.profile}; methods that never come so near are left out:"
    )
    return ResultTable(title, [*head, f"against {target.nfe:g} calls"], body)


def _close(row, target):
    """Whether the row's distance is at most `CLOSE` times the target's, over the seeds that both have."""
    distance, wanted = _paired(row, target)
    return distance <= CLOSE * wanted


def _paired(row, other):
    """The distances of two rows, each the mean over the seeds that both have; NaN where they share none."""
    seeds = row.by_seed.keys() & other.by_seed.keys()
    return [statistics.fmean(each.by_seed[seed] for seed in seeds) if seeds else math.nan for each in (row, other)]


def _beside(calls, others):
    """Two numbers of calls compared, in words."""
    if calls == others:
        return "as many"
    ratio = f"{max(calls, others) / min(calls, others):.2g}"
    if ratio == "1":
        return "about as many"
    return f"{ratio} times {'fewer' if calls < others else 'more'}"


def _spent(row):
    return row.steps, row.nfe


def _published_minus_exact(rows, unit):
    """Differences of the two profiles from the same noise, seed by seed, where both take equal steps and calls."""
    exact, published = ({(row.label, row.budget): row for row in rows if row.profile == name} for name in PROFILES)
    entries = {}
    for key in exact:
        if key in published and key[1] and _spent(exact[key]) == _spent(published[key]):
            mine, theirs = exact[key].by_seed, published[key].by_seed
            values = [theirs[seed] - mine[seed] for seed in mine if seed in theirs]
            deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            entries[key] = f"{statistics.fmean(values):+.4f}{deviation}" if values else ""
    title = (
        f"Profile published minus exact, from the same noise, by {unit}; ± is the standard deviation over the seeds:"
    )
    labels = dict.fromkeys(label for label, _ in entries)
    return crossed(title, entries, labels, sorted({budget for _, budget in entries}))
