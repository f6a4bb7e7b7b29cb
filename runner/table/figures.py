"""The figures of a table: distance against steps, network calls and seconds; images; distance to the exact flow."""

import contextlib

import numpy as np
from PIL import Image

from pndm.config.files import aside
from pndm.runner.solver.published import RELEASED
from pndm.runner.table.flow import order
from pndm.runner.table.results import best, nearest

# Okabe & Ito's colours, which the colour-blind can tell apart, then others.
COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#8C6BB1", "#B15928", "#737373")
COLOURS += ("#E7298A", "#66A61E", "#7F0000", "#00429D", "#C5B000", "#17A2A2")
MARKERS = "osD^vP*X<>"
FAINT = {"color": "#c9c9c9", "linewidth": 0.8, "zorder": 1}
SIZE = (5.4, 4.0)  # inches, at which the letters can be read on a phone
ORDER_FROM = 20  # steps from which orders are fitted
TILES = 4  # images shown of a cell
TILE = 1.1  # inches that they take


def draw(rows, flow, analytic, images):
    """(name, caption, figure) of everything that there are numbers for.

    rows: `Row`s. flow: entries with label, steps, nfe, rms. analytic: (steps, method → errors). images: (label, budget)
    → uint8 arrays (n, H, W[, 3]) from the same noise.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"font.size": 10, "svg.hashsalt": "figures", "axes.spines.top": False, "axes.spines.right": False}
    )
    style = Style(rows, flow)
    unit = "steps" if all(row.steps == row.budget for row in rows if row.budget) else "network calls"
    called = next((row.called for row in rows if row.called), None)
    if called:
        for name, what, x in (
            ("distance_steps", "steps", lambda row: row.steps),
            ("distance_calls", "network calls an image", lambda row: row.nfe),
            ("distance_seconds", "seconds a cell", lambda row: row.seconds),
        ):
            drawn = against(rows, x, what, called, style.among(style.best), what.startswith(unit))
            yield name, f"{called} against {what}.", drawn
    if flow:
        for name, what, x in (("flow_steps", "steps", "steps"), ("flow_calls", "network calls an image", "nfe")):
            caption = (
                f"Root-mean-square distance of images in [−1, 1] to the exact flow from their noise, against {what}"
            )
            caption += f"; orders fitted from {ORDER_FROM} steps on." if x == "steps" else "."
            yield name, caption, to_flow(flow, x, what, style.among(style.nearest))
    caption = "The same of a network in closed form, a mixture of Gaussians, at t = 200, in float64."
    yield "analytic", caption, orders(*analytic, style)
    if images:
        adaptive = ", ".join(label for label, budget in images if budget is None)
        images = {key: held for key, held in images.items() if key[0] in style.best}
        caption = f"Images from the same noise, methods by {unit}."
        caption += f" {adaptive}: of as many steps as it takes, in every row." if adaptive else ""
        yield "images", caption, tiles(images, unit.split()[-1])


class Style:
    """How the line of each label looks, the same in all figures.

    Of more labels than there are colours a figure has the paper's and those that are best in it somewhere in colour, by
    distance (`best`) or by distance to the exact flow (`nearest`), and the rest grey.
    """

    def __init__(self, rows, flow):
        labels = list(dict.fromkeys(row.label for row in rows))
        few = labels if len(labels) <= len(COLOURS) else RELEASED
        self.best = {*few, *(row.label for row in best(rows).values())}
        self.nearest = {*few, *(entry["label"] for entry in nearest(flow).values())}
        self.labels = [label for label in labels if label in self.best]
        self.labels += [label for label in labels if label in self.nearest - self.best]

    def among(self, shown):
        """The looks in a figure: function of a label."""
        return lambda label: self(label) if label in shown else FAINT | {"label": None}

    def __call__(self, label):
        if label not in self.labels:
            self.labels.append(label)
        n = self.labels.index(label)
        marker = MARKERS[(n + n // len(COLOURS)) % len(MARKERS)]
        look = {"color": COLOURS[n % len(COLOURS)], "marker": marker, "markersize": 4.5, "linewidth": 1.3}
        return look | {"label": label}


def axes():
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    panel = figure.subplots()
    panel.set(xscale="log", yscale="log")
    panel.grid(True, which="major", alpha=0.3)
    return figure, panel


def finish(panel, what, called, steps=None, **legend):
    """Name the axes; ticks are plain numbers: the step counts, or 1, 2, 5 a decade where there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.set(xlabel=what, ylabel=called)
    for axis, limit in ((panel.xaxis, panel.set_xlim), (panel.yaxis, panel.set_ylim)):
        low, high = axis.get_view_interval()
        if high < 1.01 * low:  # of a single point
            low, high = limit(low / 2, 2 * high)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    if steps:
        ticks = sorted(set(steps))
        panel.xaxis.set_ticks([b for a, b in zip([0, *ticks], ticks, strict=False) if b > 1.15 * a])
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=8, frameon=False, **legend)


def against(rows, x, what, called, style, ringed):
    """Distance against x(row), a line a method; an adaptive method is a point, or a level where it has no x.

    ringed: whether the best of each budget have a ring.
    """
    figure, panel = axes()
    rows = [row for row in rows if row.distance is not None]
    for profile in dict.fromkeys(row.profile for row in rows):
        faint = {} if profile == rows[0].profile else {"linestyle": "--", "alpha": 0.55, "markerfacecolor": "white"}
        for label in dict.fromkeys(row.label for row in rows):
            mine = [row for row in rows if (row.profile, row.label) == (profile, label)]
            look = style(label) | faint | ({"label": None} if faint else {})
            if mine and all(x(row) is None for row in mine):
                look.pop("marker", None)
                panel.axhline(mine[0].distance, **look | {"linestyle": ":"})
            elif mine:
                mine = sorted(mine, key=x)
                spread = [row.spread or 0 for row in mine]
                panel.errorbar([x(row) for row in mine], [row.distance for row in mine], spread, capsize=2, **look)
    if ringed and (marked := best(rows).values()):
        ring = {"s": 110, "facecolors": "none", "edgecolors": "black", "linewidths": 0.9, "zorder": 3, "label": "best"}
        panel.scatter([x(row) for row in marked], [row.distance for row in marked], **ring)
    profiles = list(dict.fromkeys(row.profile for row in rows))
    title = f"profile {profiles[0]}" + "".join(f"; dashed: {name}" for name in profiles[1:])
    steps = [row.steps for row in rows if row.steps] if what == "steps" else None
    finish(panel, what, called, steps, title=title, title_fontsize=8, ncols=2)
    return figure


def to_flow(flow, x, what, style):
    """Distance to the exact flow against the entries' value x."""
    figure, panel = axes()
    for label in dict.fromkeys(entry["label"] for entry in flow):
        mine = sorted((entry for entry in flow if entry["label"] == label), key=lambda entry: entry[x])
        counts, errors = ([entry[name] for entry in mine] for name in (x, "rms"))
        late = sum(entry["steps"] < ORDER_FROM for entry in mine) if x == "steps" else len(mine)
        slope(panel, style(label), label, counts, errors, late)
    finish(panel, what, "distance to the exact flow", [entry[x] for entry in flow] if x == "steps" else None)
    return figure


def orders(steps, errors, style):
    """Distance to the known flow of a mixture of Gaussians against steps."""
    figure, panel = axes()
    for label, values in errors.items():
        slope(panel, style(label), label, steps, values)
    finish(panel, "steps", "distance to the exact flow", steps)
    return figure


def slope(panel, look, label, counts, errors, first=0):
    """A line, and in the legend the order fitted to it without its `first` points."""
    value = order(counts[first:], errors[first:])
    said = {} if value is None or look["label"] is None else {"label": f"{label}, order {value:.2f}"}
    panel.plot(counts, errors, **look | said)


def tiles(images, unit):
    """Methods across, steps (calls) down, of each cell the first images, 2 × 2; an adaptive method's in every row."""
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for label, _ in images))
    budgets = sorted({budget for _, budget in images if budget}) or [None]
    figure = Figure((TILE * len(labels) + 0.3, TILE * len(budgets) + 0.3), layout="constrained")
    panels = figure.subplots(len(budgets), len(labels), squeeze=False)
    for i, budget in enumerate(budgets):
        for j, label in enumerate(labels):
            panels[i][j].set(xticks=[], yticks=[])
            panels[i][j].spines[:].set_visible(False)
            held = images.get((label, budget), images.get((label, None)))
            if held:
                panels[i][j].imshow(square(held[:TILES]), cmap="gray", vmin=0, vmax=255)
        panels[i][0].set_ylabel(f"{budget:g} {unit}" if budget else "adaptive", fontsize=9)
    for panel, label in zip(panels[0], labels, strict=True):
        panel.set_title(label, fontsize=9)
    return figure


def square(images):
    """uint8 images (n, H, W[, 3]) → one, side by side in a square, a light line between them."""
    side = int(np.ceil(np.sqrt(len(images))))
    height, width = images[0].shape[:2]
    gap = max(1, width // 16)
    canvas = np.full((side * (height + gap) - gap, side * (width + gap) - gap, *images[0].shape[2:]), 255, np.uint8)
    for k, image in enumerate(images):
        top, left = k // side * (height + gap), k % side * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def read_images(folder, count=TILES):
    """The first images of a sampling run's folder, uint8 arrays (H, W[, 3]); fewer where fewer were kept."""
    images = []
    for path in (folder / f"{i:06d}.png" for i in range(count)):
        with contextlib.suppress(OSError, SyntaxError):  # damaged or not there
            images.append(np.asarray(Image.open(path)))
    return images


def save(figures, folder):
    """Write (name, caption, figure)s as PNG and SVG below `folder`; returns name → (caption, PNG, SVG, inches wide)."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = {}
    for name, caption, figure in figures:
        paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
        for path in paths:
            with aside(path) as file:
                metadata = {"Date": None} if path.suffix == ".svg" else {}
                figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=metadata)
        saved[name] = (caption, *paths, figure.get_figwidth())
    return saved
