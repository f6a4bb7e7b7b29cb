"""The figures of a table: distances against steps and network calls, to the data and to the exact flow; images."""

import math
import re
import textwrap
from dataclasses import dataclass
from itertools import product
from operator import attrgetter

from pndm.config.files import aside
from pndm.runner.solver.published import PUBLISHED
from pndm.runner.table.flow import order
from pndm.runner.table.pictures import tiles
from pndm.runner.table.results import best, nearest

# Okabe & Ito's colours, which the colour-blind can tell apart, without yellow.
COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
GREY = {"color": "#d0d0d0", "linewidth": 0.7, "zorder": 1}
FEW = len(COLOURS)  # methods that one panel can hold; more get panels of their own
FAMILY = 6  # methods in colour in one of several panels
PAPER = "the paper's"  # name of the panel with its methods
PICTURED = 6  # methods whose images are shown


@dataclass(frozen=True)
class Line:
    """One method in a figure. x: empty for a level, of an adaptive method that has no number of steps."""

    label: str
    x: list
    y: list
    spread: list | None = None
    dashed: bool = False


def draw(rows, flow, analytic, images, by_calls=False):
    """(name, caption, figure) of everything that there are numbers for.

    rows: `Row`s. flow: dicts with label, steps, nfe, rms. analytic: (steps, method → errors). images: (label, budget)
    → (images, the exact flow's images or None), as `pictures.tiles` takes them. by_calls: whether the table asks for
    network calls.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"font.size": 10, "svg.hashsalt": "figures", "axes.spines.top": False, "axes.spines.right": False}
    )
    by_steps = not by_calls and all(row.steps == row.budget for row in rows if row.budget)
    axes = [("steps", "steps", "steps")] if by_steps else []
    axes.append(("calls", "nfe", "network calls an image"))
    called = next((row.called for row in rows if row.called), None)
    if called:
        for name, key, what in axes:
            caption, rings = f"{called} against {what}. Bars: ±, as in the tables.", []
            if by_steps == (key == "steps"):
                rings = [(getattr(row, key), row.distance) for row in best(rows).values()]
                caption += " Rings: the best at each number."
            yield f"distance_{name}", caption, _distances(rows, key, what, called, rings)
    for name, key, what in axes if flow else ():
        caption = (
            "Distance of a method's images from those of the exact flow from the same noise (root mean square, images "
            f"in [−1, 1]), against {what}."
        )
        yield f"flow_{name}", caption, _flows(flow, key, what)
    if analytic[1]:
        caption = (
            "Distance to the exact flow of a mixture of Gaussians, whose ε is known in closed form, against steps: the "
            "order of each method. It says nothing about the network of the table."
        )
        yield "analytic", caption, _orders(*analytic)
    shown = _pictured(rows, flow)
    chosen = {key: held for key, held in images.items() if key[0] in shown}
    if chosen:
        caption = (
            "Images from the same noise. Beside them, where it was measured, their difference from the exact flow: "
            "white is none, black is a quarter of the grey levels or more."
        )
        yield "images", caption, tiles(chosen, "steps" if by_steps else "calls")


def _distances(rows, key, what, called, rings):
    """Distance to the data against the rows' value `key`; an adaptive method that the axis does not show is a level."""
    rows = [row for row in rows if row.distance is not None]
    profiles = list(dict.fromkeys(row.profile for row in rows))
    lines, names = [], {}
    most = max((row.nfe for row in rows if row.budget), default=math.inf)  # calls that the axis shows
    for profile, label in product(profiles, dict.fromkeys(row.label for row in rows)):
        mine = [row for row in rows if (row.profile, row.label) == (profile, label)]
        dashed = profile != profiles[0]
        if mine and not mine[0].budget and (key == "steps" or mine[0].nfe > most):
            lines.append(Line(label, [], [mine[0].distance], dashed=dashed))
            calls = f"{mine[0].nfe:.0f}"
            names[label] = f"{names[label]} ({profile}: {calls})" if label in names else f"{label}, {calls} calls"
        elif mine:
            mine = sorted(mine, key=attrgetter(key))
            x, y = [getattr(row, key) for row in mine], [row.distance for row in mine]
            lines.append(Line(label, x, y, [row.spread or 0 for row in mine], dashed))
    title = f"profile {profiles[0]}" + "".join(f"; dashed: {name}" for name in profiles[1:])
    ticks = [row.steps for row in rows if row.steps] if key == "steps" else None
    return figure_of(lines, what, called, title, ticks, rings, names)


def _flows(flow, key, what):
    """Distance to the exact flow against the entries' value `key`."""
    lines = []
    for label in dict.fromkeys(entry["label"] for entry in flow):
        mine = sorted((entry for entry in flow if entry["label"] == label), key=lambda entry: entry[key])
        lines.append(Line(label, [entry[key] for entry in mine], [entry["rms"] for entry in mine]))
    ticks = [entry[key] for entry in flow] if key == "steps" else None
    return figure_of(lines, what, "distance to the exact flow", "profile exact", ticks)


def _orders(steps, errors):
    """Distance to the known flow against steps, the fitted orders in the legend."""
    lines = [Line(label, list(steps), list(values)) for label, values in errors.items()]
    names = {label: f"{label}, order {order(steps, values):.2f}" for label, values in errors.items()}
    title = f"orders fitted over {steps[0]} to {steps[-1]} steps"
    return figure_of(lines, "steps", "distance to the exact flow", title, steps, names=names)


def _pictured(rows, flow):
    """The methods whose images are shown: all of few, else the first and those that are best in most columns."""
    labels = list(dict.fromkeys(row.label for row in rows))
    if len(labels) <= PICTURED:
        return labels
    winners = [row.label for row in best(rows).values()] + [entry["label"] for entry in nearest(flow).values()]
    often = sorted(dict.fromkeys(winners), key=winners.count, reverse=True)
    return list(dict.fromkeys([labels[0], *often]))[:PICTURED]


def families(labels):
    """(name, labels) of each panel: all of few; else the paper's methods, and others by what their names begin with."""
    if len(labels) <= FEW:
        return [("", labels)]
    found = {}
    for label in labels:
        word = re.split(r"-(?!Solver)|\+|\d| ", label)[0]
        found.setdefault(PAPER if label in PUBLISHED else word, []).append(label)
    groups = []
    for name, members in found.items():
        fits = [i for i, (other, held) in enumerate(groups) if other != PAPER and len(held) + len(members) <= FAMILY]
        if fits and len(members) < FAMILY / 2:  # a small family shares a panel
            other, held = groups[fits[-1]]
            groups[fits[-1]] = (f"{other}, {name}", [*held, *members])
            continue
        parts = math.ceil(len(members) / FAMILY)
        size = math.ceil(len(members) / parts)
        for i in range(parts):
            groups.append((f"{name}, {i + 1} of {parts}" if parts > 1 else name, members[i * size : (i + 1) * size]))
    return groups


def figure_of(lines, xlabel, ylabel, title, ticks=None, rings=(), names=None):
    """Lines over logarithmic axes, in one panel or, where there are many, in one for each family.

    In the panel of a family the others are grey. title: of the legend. ticks: those of the x axis; None: 1, 2, 5, 10, …
    rings: points to be ringed. names: label → what stands in the legend.
    """
    from matplotlib.figure import Figure

    ylabel = textwrap.fill(ylabel, 35)  # no axis has room for more
    groups = families(list(dict.fromkeys(line.label for line in lines)))
    columns = min(2, len(groups))
    down = math.ceil(len(groups) / columns)
    most = max(len(labels) for _, labels in groups)
    size = (4.8, 4.8) if columns == 1 else (6.2, down * (2.5 + 0.19 * most))
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(down, columns, squeeze=False, sharex=True, sharey=True).flat
    legend = {"fontsize": 9, "frameon": False}
    for (family, labels), panel in zip(groups, panels, strict=False):
        looks = {}
        for label, colour, marker in zip(labels, COLOURS, MARKERS, strict=False):
            shown_as = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.3}
            looks[label] = shown_as | {"label": (names or {}).get(label, label)}
        for line in lines:
            alone = not line.dashed or all(other.dashed for other in lines if other.label == line.label)
            _plot(panel, line, looks.get(line.label), alone)
        if rings:
            ring = {"s": 90, "facecolors": "none", "edgecolors": "black", "linewidths": 0.9, "zorder": 3}
            panel.scatter(*zip(*rings, strict=True), label="best", **ring)
        panel.set_title(family, fontsize=10)
        finish(panel, ticks)
        shown = _in_order(panel, [look["label"] for look in looks.values()])
        if columns > 1:
            panel.legend(*shown, loc="upper center", bbox_to_anchor=(0.45, -0.1), borderaxespad=0, **legend)
    for panel in panels:
        panel.set_visible(False)
    if columns == 1:
        figure.axes[0].set(xlabel=xlabel, ylabel=ylabel)
        figure.legend(*shown, loc="outside lower center", ncols=2, title=title, title_fontsize=9, **legend)
    else:
        figure.supxlabel(xlabel, fontsize=10)
        figure.supylabel(ylabel, fontsize=10)
        figure.suptitle(f"{title}; grey: the other methods", fontsize=10)
    return figure


def _in_order(panel, names):
    """The legend's handles and texts in the order of `names`, the rings last."""
    found = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    texts = [name for name in [*names, "best"] if name in found]
    return [found[text] for text in texts], texts


def _plot(panel, line, look, alone):
    """Draw a line; look: None where it is grey; alone: whether it is the only one of its label."""
    look = dict(look or GREY)
    if line.dashed:
        look |= {"linestyle": "--", "alpha": 0.55, "label": look.get("label") if alone else None}
        look |= {"markerfacecolor": "white"} if "marker" in look else {}
    if not line.x:
        look.pop("marker", None)
        panel.axhline(line.y[0], **look | {"linestyle": ":"})
    elif line.spread and "marker" in look:
        panel.errorbar(line.x, line.y, line.spread, capsize=2, **look)
    else:
        panel.plot(line.x, line.y, **look)


def finish(panel, steps=None):
    """Logarithmic axes with plain numbers: the step counts, or the fewer a decade, the more decades there are."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    panel.set(xscale="log", yscale="log")
    panel.grid(True, which="major", alpha=0.3)
    panel.tick_params(labelbottom=True, labelleft=True, labelsize=9)
    for axis, limit in ((panel.xaxis, panel.set_xlim), (panel.yaxis, panel.set_ylim)):
        low, high = axis.get_view_interval()
        if high < 1.01 * low:  # of a single point
            low, high = limit(low / 2, 2 * high)
        locator = LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,))
        if axis is panel.yaxis and high < 30 * low:  # the best lie close together, and labels have room here
            locator = MaxNLocator(6) if high < 4 * low else LogLocator(subs=(1, 1.5, 2, 3, 5, 7))
        axis.set_major_locator(locator)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    if steps:
        low, high = panel.get_xlim()
        room = (high / low) ** 0.07  # between two ticks, so that their labels stand apart
        kept = []
        for value in sorted(set(steps)):
            if not kept or value > room * kept[-1]:
                kept.append(value)
        panel.xaxis.set_ticks(kept)


def save(figures, folder):
    """Write (name, caption, figure)s as PNG and SVG below `folder`, and delete others that are there.

    Returns name → (caption, PNG, SVG, inches wide).
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved = {}
    for name, caption, figure in figures:
        paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
        for path, metadata in zip(paths, ({}, {"Date": None}), strict=True):
            with aside(path) as file:
                figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=metadata)
        saved[name] = (caption, *paths, figure.get_figwidth())
    for old in folder.iterdir():  # of an earlier go
        if old.suffix in (".png", ".svg") and old.stem not in saved:
            old.unlink()
    return saved
