"""What is made of a table's cells: means over seeds, lines of a CSV file, and the paper's table in Markdown."""

import csv
import json
import statistics
from dataclasses import dataclass

from pndm.config.files import aside
from pndm.runner.measure.measurement import name_of
from pndm.runner.solver.published import PROFILES

CLOSE = 1.05  # a distance no larger than this times another counts as one like it


@dataclass(frozen=True)
class Row:
    """The cells that differ only in their seed: means over the seeds, and the distance's standard deviation.

    The deviation is None with one seed; `error` is then that cell's own (the jackknife's).
    """

    label: str
    profile: str
    budget: int | None  # the steps, or network calls, asked for; None of an adaptive method
    steps: int | None
    nfe: float
    seeds: int
    images: int
    distance: float | None
    deviation: float | None
    error: float | None
    seconds: float
    batch: int
    called: str | None
    by_seed: dict  # seed → distance

    @property
    def seconds_per_step(self):
        """Of one batch."""
        return self.seconds / self.steps / -(-self.images // self.batch)

    @property
    def spread(self):
        return self.error if self.deviation is None else self.deviation


def summary(done):
    """`Cell.row` → `Row`, in the order of the cells."""
    rows = {}
    for key in dict.fromkeys(cell.row for cell, _ in done):
        records = [record for cell, record in done if cell.row == key]
        by_seed = {record["seed"]: record["frechet"]["value"] for record in records if record["frechet"]}
        cards = [record["frechet"] for record in records if record["frechet"]]
        values = list(by_seed.values())
        rows[key] = Row(
            label=key[0],
            profile=key[1],
            budget=key[2] or key[3],
            steps=records[0]["steps"],
            nfe=statistics.fmean(record["nfe"] for record in records),
            seeds=len(records),
            images=records[0]["images"],
            distance=statistics.fmean(values) if values else None,
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            error=cards[0]["error"] if len(cards) == 1 else None,
            seconds=statistics.fmean(r["seconds"] * r["images"] / r.get("made", r["images"]) for r in records),
            batch=records[0]["config"]["Sample"]["batch_size"],
            called=name_of(cards[0]) if cards else None,
            by_seed=by_seed,
        )
    return rows


def best(rows):
    """Budget → the row of the least distance that spends it, of the profile that comes first."""
    found = {}
    for row in rows:
        held = found.get(row.budget)
        if row.budget and row.distance is not None and row.profile == rows[0].profile:
            found[row.budget] = min(held or row, row, key=lambda r: r.distance)
    return found


def nearest(flow):
    """Budget → the entry of the least distance to the exact flow."""
    found = {}
    for entry in flow:
        found[entry["budget"]] = min(found.get(entry["budget"], entry), entry, key=lambda e: e["rms"])
    return found


def markdown(table, name, rows, flow=()):
    """The table in Markdown: by profile, methods × steps; then ours, the paper's, and the difference.

    Then the distances to the exact flow, entries with budget, label, rms, images. And what the paper claims: the calls
    in which each method is as good as the first in its most steps, and what the profile "published" changes.
    """
    budgets = sorted({row.budget for row in rows} - {None})
    called = next((row.called for row in rows if row.called), "nothing measured")
    spread = "standard error of its images"
    if any(row.seeds > 1 for row in rows):
        spread = f"standard deviation over the seeds, with one seed the {spread}"
    unit = "network calls" if table.nfe else "steps"
    lines = [f"# {name}", "", f"{called}, {rows[0].images:,} images a cell; ± is the {spread}. Bold: the least."]
    if any(row.nfe < (row.budget or 0) for row in rows):
        lines[-1] += (
            " In brackets: the calls of a method that cannot spend the number; of several numbers at the least."
        )
    for profile in dict.fromkeys(row.profile for row in rows):
        mine = {(row.label, row.budget): row for row in rows if row.profile == profile}
        fixed = dict.fromkeys(label for label, budget in mine if budget)
        least = [] if len(fixed) < 2 else list(best(list(mine.values())).values())

        def entry(row, least=least):
            fewer = f" ({row.nfe:g})" if table.nfe and row and row.nfe < row.budget else ""
            return (f"**{value(row)}**" if row in least else value(row)) + fewer

        body = [[label, *(entry(mine.get((label, budget))) for budget in budgets)] for label in fixed]
        lines += section(f"Profile `{profile}`, by {unit}:", ["method", *budgets], body)
        body = [[row.label, f"{row.nfe:.1f}", value(row)] for row in mine.values() if not row.budget]
        lines += section(f"Profile `{profile}`, adaptive steps:", ["method", "network calls", "distance"], body)
    lines += _beside_the_paper(table.paper, rows)
    lines += _to_the_flow(flow, unit)
    lines += _as_good_as_the_best(rows, unit)
    lines += _as_good_as_the_first(rows)
    lines += _published_less_exact(rows)
    return "\n".join(lines) + "\n"


def section(title, head, body):
    """A table below its title; nothing without lines."""
    if not body:
        return []
    table = [f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *body)]
    return ["", title, "", *table]


def value(row):
    """A row's distance and spread as text; nothing for none."""
    if row is None or row.distance is None:
        return ""
    digits = 2 if row.distance >= 1 else 4
    spread = "" if row.spread is None else f" ± {row.spread:.{digits}f}"
    return f"{row.distance:.{digits}f}{spread}"


def _beside_the_paper(paper, rows):
    def beside(row):
        known = paper.fid.get(row.label, {}).get(row.steps)
        theirs = [known.value, known.basis, f"{row.distance - known.value:+.2f}"] if known and row.called else [""] * 3
        return [row.label, row.profile, row.steps or "adaptive", f"{row.nfe:.4g}", value(row), *theirs]

    lines = []
    if paper.fid:
        head = ["method", "profile", "steps", "network calls", "ours", "paper", "basis", "difference"]
        title = "Beside the paper's, where it is known, and the basis of what is known:"
        lines += section(title, head, [beside(row) for row in rows])
    for label, values in paper.fid.items():
        if best := values.get("best"):
            lines += ["", f"The paper's best of {label}, at steps not known here: {best.value} ({best.basis})."]
    timed = [row for row in rows if row.steps == 50 and row.label in paper.seconds_per_step]
    body = [[r.label, r.profile, r.batch, f"{r.seconds_per_step:.3f}", paper.seconds_per_step[r.label]] for r in timed]
    title = "Seconds a step of a batch, over 50 steps (paper: batch 512 on an RTX 3090):"
    return lines + section(title, ["method", "profile", "batch", "ours", "paper"], body)


def _to_the_flow(flow, unit):
    if not flow:
        return []
    budgets, mine = sorted({e["budget"] for e in flow}), {(e["label"], e["budget"]): e for e in flow}
    least = nearest(flow).values()

    def entry(held):
        text = "" if held is None else f"{held['rms']:.2g}"
        return f"**{text}**" if held in least else text

    body = [
        [label, *(entry(mine.get((label, n))) for n in budgets)] for label in dict.fromkeys(e["label"] for e in flow)
    ]
    title = (
        f"Distance to the exact flow from the same noise, root mean square over {flow[0]['images']} images in [−1, 1], "
    )
    return section(title + f"profile `exact`, by {unit}; bold: the least.", ["method", *budgets], body)


def _as_good_as_the_best(rows, unit):
    """For each budget the best, and those that are not worse than it from the same noise as far as can be told."""

    def as_good(row, least):
        seeds = row.by_seed.keys() & least.by_seed.keys()
        worse = [row.by_seed[seed] - least.by_seed[seed] for seed in seeds]
        if len(worse) < 2:
            return row.distance - least.distance <= (least.spread or 0)
        return statistics.fmean(worse) <= 2 * statistics.stdev(worse) / len(worse) ** 0.5

    body = []
    for budget, least in sorted(best(rows).items()):
        others = [row for row in rows if (row.budget, row.profile) == (budget, least.profile) and row is not least]
        others = sorted((row for row in others if row.distance is not None), key=lambda row: row.distance)
        equal = ", ".join(row.label for row in others if as_good(row, least))
        if others:
            body.append([budget, least.label, value(least), equal or "none"])
    title = f"The best by {unit}, profile `{rows[0].profile}`, and those that from the same noise are worse by no more "
    title += "than two standard errors of the difference (over the seeds; with one seed than the error of the best):"
    return section(title, [unit, "best", "distance", "as good"], body)


def _as_good_as_the_first(rows):
    """The fewest calls in which each method comes close to the first method in its most steps, from the same noise."""
    rows = [row for row in rows if row.called and row.profile == rows[0].profile]
    first = [row for row in rows if row.label == rows[0].label and row.steps]
    if len(first) < 2:
        return []
    target = max(first, key=lambda row: row.steps)

    def close(row):
        seeds = row.by_seed.keys() & target.by_seed.keys()
        return sum(row.by_seed[seed] - CLOSE * target.by_seed[seed] for seed in seeds) <= 0 and seeds

    body = []
    for label in dict.fromkeys(row.label for row in rows):
        able = [row for row in rows if row.label == label and close(row)]
        if able and (least := min(able, key=lambda row: row.nfe)) is not target:
            times = f"{target.nfe / least.nfe:.2g}"
            body.append([label, least.steps or "adaptive", f"{least.nfe:.4g}", value(least), times])
    title = f"The least calls for a distance at most {CLOSE - 1:.0%} above {target.label}'s in {target.steps} steps"
    title += f" from the same noise, {value(target)}, profile `{target.profile}`:"
    return section(title, ["method", "steps", "network calls", "distance", "times fewer calls"], body)


def _published_less_exact(rows):
    """Differences of the two profiles from the same noise, seed by seed."""
    exact, published = ({(r.label, r.budget): r for r in rows if r.profile == name} for name in PROFILES)
    both = [key for key in exact if key in published and key[1]]
    budgets = sorted({budget for _, budget in both})

    def difference(key):
        if key not in both:
            return ""
        mine, theirs = exact[key].by_seed, published[key].by_seed
        values = [theirs[seed] - mine[seed] for seed in mine if seed in theirs]
        deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):+.4f}{deviation}" if values else ""

    labels = dict.fromkeys(label for label, _ in both)
    body = [[label, *(difference((label, budget)) for budget in budgets)] for label in labels]
    title = "Profile `published` less `exact` from the same noise, by steps, ± standard deviation over the seeds:"
    return section(title, ["method", *budgets], body)


def tidy(cell, record, row):
    """A line of cells.csv: what is compared first, then everything in the record, nested keys joined by dots."""
    frechet = record["frechet"] or {}
    first = {
        "label": cell.label,
        "method": record["method"],
        "profile": record["profile"],
        "steps": record["steps"],
        "nfe": record["nfe"],
        "seed": record["seed"],
        "images": record["images"],
        "distance": frechet.get("value"),
        "error": frechet.get("error"),
        "seeds": row.seeds,
        "mean_over_seeds": row.distance,
        "deviation_over_seeds": row.deviation,
        "seconds": record["seconds"],
        "images_per_second": record["images_per_second"],
    }
    return first | {name: value for name, value in _flat(record) if name not in first}


def _flat(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif not prefix.startswith("identity"):
            yield f"{prefix}{name}", json.dumps(value) if isinstance(value, list) else value


def save_csv(path, lines):
    columns = dict.fromkeys(name for line in lines for name in line)
    with aside(path) as file, open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(lines)
