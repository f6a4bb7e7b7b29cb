"""Make the pictures of README and docs/ from what the code gives now.

python tools/pictures.py                            # all but demo, training, fashion
python tools/pictures.py demo                       # needs playwright, and chromium on the PATH
python tools/pictures.py gain --cells docs/results-fashion/cells.csv docs/results-digits/cells.csv
python tools/pictures.py training --run temp/mine   # after the commands of docs/train-your-own.md
python tools/pictures.py fashion --run temp/fashion --samples temp/sample/fashion_F-PNDM_50    # of docs/fashion.md
"""

import argparse
import csv
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
import torch
from PIL import Image

import pndm.demo
from pndm import Schedule, trajectory
from pndm.config.errors import first_line
from pndm.config.files import aside
from pndm.config.load import load
from pndm.dataset import open_dataset, to_picture
from pndm.runner.folder import grid, read_image
from pndm.runner.solver.solve import nothing, rehearse
from pndm.runner.table.figures import COLOURS
from pndm.runner.table.tables import CLOSE

DOCS = Path("docs")
SHOWN = {"DDIM": COLOURS[0], "S-PNDM": COLOURS[1], "F-PNDM": COLOURS[2]}
TABLES = [DOCS / name / "cells.csv" for name in ("results-fashion", "results-digits")]
CALLED = {"FASHION": "clothes, 28×28", "DIGITS": "digits, 8×8"}


def gain(args):
    """README's first picture: distance against network calls, with the fewest calls that reach DDIM's most."""
    figure, *panels = canvas(6.8, 3.4, len(args.cells))
    for path, axes in zip(args.cells, panels, strict=True):
        gain_of(path, axes)
    panels[0].set_ylabel("distance from the data")
    panels[0].legend(frameon=False)
    save(figure, "gain.svg")


def gain_of(path, axes):
    """The panel of one table's cells.csv: the cells of its first seed, which all methods have in every column."""
    with open(path, encoding="utf-8") as file:
        cells = [row for row in csv.DictReader(file) if row["profile"] == "exact" and row["label"] in SHOWN]
    found = {(row["label"], float(row["nfe"])): float(row["distance"]) for row in cells if row["seed"] == "0"}
    most = max(calls for label, calls in found if label == "DDIM")
    goal = found["DDIM", most]
    enough = {name: min(n for (label, n), d in found.items() if label == name and d <= CLOSE * goal) for name in SHOWN}
    for label, colour in SHOWN.items():
        points = sorted((calls, value) for (name, calls), value in found.items() if name == label)
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=label, markersize=4)
    data = cells[0]["config.Dataset.dataset"]
    first = min(enough, key=enough.get)
    few, low, high = enough[first], min(found.values()), max(found.values())
    below = low * (low / high) ** 0.15
    for calls, distance, colour in ((few, found[first, few], SHOWN[first]), (most, goal, SHOWN["DDIM"])):
        axes.plot([calls, calls], [distance, below], ":", color="black", linewidth=0.9, zorder=0)
        axes.plot(calls, distance, "o", color=colour, markersize=10, markerfacecolor="none")
    axes.annotate("", (few, below), (most, below), arrowprops={"arrowstyle": "->", "color": "black"})
    axes.text(
        (few * most) ** 0.5, below * 0.97, f"as near in {most / few:.0f} times fewer calls", ha="center", va="top"
    )
    axes.set_ylim(bottom=below * (low / high) ** 0.12)
    axes.set(xscale="log", yscale="log", xlabel="network calls an image", title=CALLED.get(data, data))
    axes.set_xticks(calls := [5, 10, 20, 50, 100, 250, most], [f"{n:g}" for n in calls])
    nice = [d * 10.0**k for k in range(-4, 4) for d in (1, 1.5, 2, 3, 5, 7)]
    axes.set_yticks(shown := [y for y in nice if low / 1.5 < y < 1.5 * high], [f"{y:g}" for y in shown])
    axes.minorticks_off()
    for label, calls in enough.items():
        target = f"DDIM's distance in {most:g}, {goal:.4f}, or at most {CLOSE - 1:.0%} more"
        print(f"{path}: {label}: {calls:g} calls for {target}")


def method(args):
    """The picture of docs/pndm.md: the times of all network calls of three methods in ten steps."""
    figure, axes = canvas(7.5, 2.4)
    names = [*SHOWN][::-1]
    for height, name in enumerate(names):
        steps = list(rehearse(trajectory(name, nothing(), Schedule(), 10)))
        asked = [query for queries, _ in steps for query in queries]
        ends = {step.t for _, step in steps}
        twice = {}
        for event in asked:
            lift = twice[event.t] = twice.get(event.t, -1) + 1
            filled = SHOWN[name] if event.t in {900.0} | ends else "white"
            axes.plot(event.t, height + 0.18 * lift, "o", color=SHOWN[name], markerfacecolor=filled, markersize=6)
        axes.text(-60, height, f"{len(asked)} calls", va="center")
    axes.set(xlabel="t, from noise to data", xlim=(950, -170), ylim=(-0.4, len(names) - 0.2))
    axes.set_xticks(range(900, -1, -100))
    axes.set_yticks(range(len(names)), names)
    save(figure, "method.svg")


def digits(args):
    """README's digits: the first 36 images of `make sample`."""
    with aside(DOCS / "pictures" / "digits.png") as file:
        shutil.copyfile(sampled("digits", ["--total_num", "36"]) / "grid.png", file)
    print(DOCS / "pictures" / "digits.png")


def clothes(args):
    """README's clothes: the first 25 images of the command that stands there, by three methods from the same noise."""
    figure, *panels = canvas(10, 3.7, 3)
    shown = [("DDIM", 10, 10), ("DDIM", 50, 50), ("F-PNDM", 50, 59)]
    for axes, (name, steps, calls) in zip(panels, shown, strict=True):
        flags = ["--config", "fashion.yml", "--method", name, "--sample_speed", str(steps), "--total_num", "25"]
        axes.imshow(Image.open(sampled(f"{name}_{steps}", flags) / "grid.png"))
        axes.set(title=f"{name}, {calls} calls")
        axes.axis("off")
    with aside(DOCS / "pictures" / "clothes.png") as file:
        figure.savefig(file, format="png", dpi=100, bbox_inches="tight", pad_inches=0.02)
    print(DOCS / "pictures" / "clothes.png")


def sampled(name, flags):
    """The folder of a sampling run."""
    from pndm import cli

    folder = Path("temp/pictures") / name
    if cli.main([*flags, "--image_path", str(folder)]):
        raise OSError("sampling failed")
    return folder


def training(args):
    """The pictures of docs/train-your-own.md: the data, samples, and the curves of the run."""
    tiles("own-data.png", [read_image(file) for file in sorted(args.images.glob("*.png"))[:25]])
    tiles("own-samples.png", [read_image(args.samples / f"{i:06d}.png") for i in range(25)])
    curves(args.run, "own-curves.svg")


def fashion(args):
    """The pictures of docs/fashion.md: 100 images of the data, as many samples, and the curves of the run."""
    data = open_dataset(load("fashion.yml").Dataset)
    tiles("fashion-data.png", [data[i] for i in range(100)])
    tiles("fashion-samples.png", [read_image(args.samples / f"{i:06d}.png") for i in range(100)])
    curves(args.run, "fashion-curves.svg")


def tiles(name, images):
    with aside(DOCS / "pictures" / name) as file:
        to_picture(grid(torch.stack(images))).save(file, "PNG")
    print(DOCS / "pictures" / name)


def curves(run, name):
    """The loss of the training run in the folder `run`, and its error by ranges of t."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run)).Reload()
    figure, left, right = canvas(7.5, 3, 2)
    for axes, names, title in (
        (left, ["loss"], "loss a pixel"),
        (right, [name for name in log.Tags()["scalars"] if name.startswith("error_by_t/")], "error of ε a pixel, by t"),
    ):
        for scalar, colour in zip(names, COLOURS, strict=False):
            events = log.Scalars(scalar)
            axes.plot([e.step for e in events], [e.value for e in events], color=colour, label=scalar.split("/")[-1])
        axes.set(title=title, xlabel="step", yscale="log")
    right.legend(frameon=False, fontsize=8, title="t", loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, name)


def demo(args):
    """The demo page, exported, as Chromium shows it."""
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "page.html"
        rows = ["--methods", "DDIM,F-PNDM,iPNDM3", "--calls", "5,10,20", "--images", "4"]
        pndm.demo.main([*rows, "--export", str(file)])
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.goto(file.as_uri())
        with aside(DOCS / "pictures" / "demo.png") as picture:
            page.screenshot(path=picture, type="png")
        browser.close()


def canvas(width, height, columns=1):
    """A figure of so many inches, and its axes."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), layout="constrained", sharey=False)
    return (figure, *np.ravel(axes))


def save(figure, name):
    path = DOCS / "pictures" / name
    with aside(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    print(path)


PICTURES = {"gain": gain, "method": method, "digits": digits, "clothes": clothes}
WITHOUT_MORE = tuple(PICTURES)  # those that need nothing but the project
PICTURES |= {"demo": demo, "training": training, "fashion": fashion}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PICTURES)}; default: {', '.join(WITHOUT_MORE)}")
    parser.add_argument("--cells", type=Path, nargs="+", default=TABLES, metavar="CELLS", help="of tables, for gain")
    parser.add_argument("--run", type=Path, default=Path("temp/mine"), help="folder of the training run")
    parser.add_argument("--images", type=Path, default=Path("temp/crops"), help="folder of the images it learned from")
    parser.add_argument("--samples", type=Path, default=Path("temp/mine-samples"), help="folder of its samples")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - PICTURES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(PICTURES)}")
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"font.size": 10, "svg.hashsalt": "pictures", "axes.spines.top": False, "axes.spines.right": False}
    )
    try:
        for name in args.names or WITHOUT_MORE:
            PICTURES[name](args)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:  # of files that are missing or damaged
        print(f"pictures.py: {first_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
