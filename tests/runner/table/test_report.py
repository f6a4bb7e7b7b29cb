"""Figures and the page with them, in a browser too where there is one."""

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from pndm.runner.measure.measurement import name_of
from pndm.runner.solver.schedule import Schedule
from pndm.runner.table import figures, pictures, report
from pndm.runner.table import flow as convergence
from pndm.runner.table.results import Row
from pndm.runner.table.tables import ResultTable

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COUNTS = (5, 10, 20, 50)


def rows():
    made = []
    for profile in ("exact", "published"):
        for label, extra in (("DDIM", 0), ("F-PNDM", 9)):
            for n in COUNTS:
                numbers = {"distance": 1 / n, "deviation": 0.01 / n, "error": None, "seconds": 0.1 * n, "batch": 50}
                budget = {"budget": n, "steps": n, "nfe": n + extra, "seeds": 3, "images": 500}
                made.append(
                    Row(
                        label,
                        profile,
                        **budget,
                        **numbers,
                        called="Fréchet distance on pixels",
                        by_seed=dict.fromkeys(range(3), 1 / n),
                    )
                )
    return [
        *made,
        Row(
            "PF",
            "exact",
            None,
            None,
            215.3,
            3,
            500,
            0.02,
            0.001,
            None,
            20.0,
            50,
            made[0].called,
            dict.fromkeys(range(3), 0.02),
        ),
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """All figures of a made-up table."""
    rng = np.random.default_rng(0)

    def four():
        return list(rng.integers(0, 256, (4, 8, 8), np.uint8))

    images = {(label, n): (four(), four()) for label in ("DDIM", "F-PNDM") for n in COUNTS}
    images["PF", None] = four(), None
    flow = [
        {"label": label, "steps": n, "nfe": n, "budget": n, "rms": 1 / n}
        for label in ("DDIM", "F-PNDM")
        for n in COUNTS
    ]
    steps = (10, 20)
    drawn = figures.draw(rows(), flow, (steps, convergence.analytic(Schedule(), ("DDIM", "F-PNDM"), steps)), images)
    return figures.save(drawn, tmp_path_factory.mktemp("figures") / "figures")


def made(label, budget, distance):
    return Row(label, "exact", budget, budget, budget, 1, 10, distance, None, 0.1, 1.0, 5, "FID", {0: distance})


def named(panel):
    return panel.get_legend_handles_labels()[1]


def test_of_many_methods_every_one_is_named_in_one_panel():
    rows = [made(f"other{i}", n, 2 + i / n) for i in range(20) for n in (5, 10)]
    rows += [made("DDIM", 5, 4.0), made("DDIM", 10, 3.0), made("best at 10", 10, 1.0)]
    name, _, figure = next(figures.draw(rows, [], ((10, 20), {}), {}))
    assert name == "distance_steps"
    labels = [label for panel in figure.axes for label in named(panel) if label != "best"]
    assert sorted(labels) == sorted({row.label for row in rows})
    assert max(len(named(panel)) for panel in figure.axes) <= 8
    assert all(len(panel.get_lines()) + len(panel.containers) >= len(labels) for panel in figure.axes if named(panel))
    for panel in figure.axes:
        handles, names = panel.get_legend_handles_labels()
        if names:
            np.testing.assert_array_equal(handles[names.index("best")].get_offsets(), [[5, 2], [10, 1]])


def test_a_table_by_calls_has_no_figures_by_steps():
    drawn = figures.draw([made("DDIM", 5, 1.0)], [], ((10, 20), {}), {}, by_calls=True)
    assert [name for name, _, _ in drawn] == ["distance_calls"]


def test_a_method_that_only_the_second_profile_has_is_named():
    rows = [replace(made("DDIM", 5, 1.0), profile="published"), made("DDIM", 5, 1.1), made("Heun", 5, 0.9)]
    drawn = {name: figure for name, _, figure in figures.draw(rows, [], ((10, 20), {}), {})}
    assert sorted(named(drawn["distance_steps"].axes[0])) == ["DDIM", "Heun", "best"]


def test_panels_are_families():
    labels = ["DDIM", "PF", "iPNDM2", "iPNDM3", "Heun", *(f"DEIS-{i}" for i in range(8)), "Heun karras"]
    assert figures.families(labels) == [
        ("the paper's", ["DDIM", "PF"]),
        ("iPNDM, Heun", ["iPNDM2", "iPNDM3", "Heun", "Heun karras"]),
        ("DEIS, 1 of 2", [f"DEIS-{i}" for i in range(4)]),
        ("DEIS, 2 of 2", [f"DEIS-{i}" for i in range(4, 8)]),
    ]
    assert figures.families(labels[:5]) == [("", labels[:5])]


def test_an_order_stands_beside_the_range_that_it_is_fitted_to():
    steps = (25, 50, 100)
    drawn = {
        name: figure for name, _, figure in figures.draw([made("DDIM", 5, 1)], [], (steps, {"DDIM": [4, 2, 1]}), {})
    }
    assert named(drawn["analytic"].axes[0]) == ["DDIM, order 1.00"]
    assert drawn["analytic"].legends[0].get_title().get_text() == "orders fitted over 25 to 100 steps"


def test_differences_from_the_exact_flow_are_dark_on_white():
    images = [np.full((4, 4), level, np.uint8) for level in (10, 110)]
    flow = [np.full((4, 4), level, np.uint8) for level in (10, 100)]
    shown = pictures.beside_flow(images, flow)
    assert shown.shape == (9, 9 + 2 + 9)
    assert (shown[0, 0], shown[0, 5]) == (10, 110)
    assert (shown[0, 11], shown[0, 16]) == (255, 255 - 4 * 10)
    np.testing.assert_array_equal(pictures.beside_flow(images, None), pictures.square(images))


def test_images_behind_a_damaged_one_are_left_out(tmp_path):
    for i in range(3):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i:06d}.png")
    whole = (tmp_path / "000001.png").read_bytes()
    (tmp_path / "000001.png").write_bytes(b"cut")
    assert [image.max() for image in pictures.read_images(tmp_path)] == [0]
    (tmp_path / "000001.png").write_bytes(whole[:11] + b"\x05" + whole[12:])  # Pillow raises a ValueError
    assert [image.max() for image in pictures.read_images(tmp_path)] == [0]


def test_a_single_point_has_room():
    one = Row("Heun", "exact", 10, 10, 9, 1, 50, 0.5, None, 0.1, 1.0, 5, "FID", {0: 0.5})
    drawn = {name: figure for name, _, figure in figures.draw([one], [], ((10, 20), {}), {})}
    for name, x in (("distance_steps", 10), ("distance_calls", 9)):
        low, high = drawn[name].axes[0].get_xlim()
        assert low < 0.9 * x and high > 1.1 * x


def test_a_level_says_its_calls_of_each_profile():
    """PF with adaptive steps, which the axis of steps does not show."""
    level = replace(made("DDIM", 5, 0.9), label="PF", budget=None, steps=None, nfe=221.3)
    rows = [*(made("DDIM", n, 1 / n) for n in COUNTS), level, replace(level, profile="published", nfe=189.6)]
    figure = next(figures.draw(rows, [], ((10, 20), {}), {}))[2]
    assert "PF, 221 calls (published: 190)" in {text.get_text() for text in figure.findobj(Text)}


def test_figures_that_are_no_longer_drawn_are_deleted(tmp_path):
    for name in ("flow_calls.svg", "flow_calls.png", "notes.txt"):
        (tmp_path / name).write_text("")
    figures.save(figures.draw([made("DDIM", 5, 1.0)], [], ((10, 20), {}), {}, by_calls=True), tmp_path)
    held = {file.name for file in tmp_path.iterdir()}
    assert held == {"distance_calls.png", "distance_calls.svg", "notes.txt"}


@pytest.mark.parametrize("worst", [1.1, 3, 11])
def test_the_best_distances_lie_between_two_ticks(worst):
    rows = [made("DDIM", n, distance) for n, distance in zip(COUNTS, (worst, 0.9, 0.8, 0.79), strict=True)]
    panel = next(figures.draw(rows, [], ((10, 20), {}), {}))[2].axes[0]
    low, high = panel.get_ylim()
    ticks = [tick for tick in panel.get_yticks() if low <= tick <= high]
    assert min(ticks) <= 0.8 and sum(tick <= 1 for tick in ticks) > 1


@pytest.mark.parametrize("features", ["fashion", "inception"])
@pytest.mark.parametrize("methods", [1, 9], ids=["one panel", "several"])
def test_the_longest_name_of_a_distance_is_not_cut(features, methods):
    called = name_of({"features": features, "hash": None})
    rows = [replace(made(f"method {i}", n, 1 / n), called=called) for i in range(methods) for n in COUNTS]
    for name, _, figure in figures.draw(rows, [], ((10, 20), {}), {}):
        FigureCanvasAgg(figure).draw()
        (text,) = (text for text in figure.findobj(Text) if text.get_text().split() == called.split())
        box = text.get_window_extent()
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, name


@pytest.fixture(scope="module")
def page(saved, tmp_path_factory):
    table = ResultTable("A <title>", ["a", "b"], [["x & y", "wide " * 60], ["z", "5"]], {(1, 1)}, ("A note.",))
    path = tmp_path_factory.mktemp("page") / "report.html"
    text = report.page("digits <&>", ["A cell is 1 < 2."], [table], saved, {"versions": "torch " * 30})
    path.write_text(text, encoding="utf-8")
    return path


def test_every_figure_is_there_twice_and_not_blank(saved):
    assert set(saved) == {
        *("distance_steps", "distance_calls", "flow_steps", "flow_calls", "analytic", "images"),
    }
    for _, png, svg, inches in saved.values():
        image = np.asarray(Image.open(png).convert("L"))
        assert image.shape[1] == pytest.approx(150 * inches, abs=1)
        assert image.min() < 100 < 250 < image.max()
        assert svg.read_text(encoding="utf-8").count("<path") > 10


def test_what_there_are_no_numbers_for_is_not_drawn():
    analytic = ((10, 20), {"DDIM": [0.2, 0.1]})
    without = [Row("DDIM", "exact", 5, 5, 5, 1, 10, None, None, None, 1.0, 5, None, {})]
    assert [name for name, _, _ in figures.draw(without, [], analytic, {})] == ["analytic"]


def test_images_lie_side_by_side():
    tiles = [np.full((8, 8, 3), level, np.uint8) for level in (0, 50, 100)]
    canvas = pictures.square(tiles)
    assert canvas.shape == (17, 17, 3)
    assert (canvas[0, 0, 0], canvas[0, 9, 0], canvas[9, 0, 0], canvas[9, 9, 0]) == (0, 50, 100, 255)


class Links(html.parser.HTMLParser):
    """What a page would fetch or run."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_holds_all_it_shows(page, saved):
    text = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert len(links.fetched) == len(saved) + 1  # and no icon
    assert all(value.startswith("data:") for value in links.fetched)
    assert not {"script", "iframe", "object", "embed"} & set(links.tags)
    assert not re.search(r"@import|url\(", text.split("</style>")[0])
    assert "digits &lt;&amp;&gt;" in text
    assert "<p>A cell is 1 &lt; 2.</p>" in text
    assert "<p>A &lt;title&gt;</p>" in text
    assert "<td>x &amp; y</td>" in text
    assert "<tr><td>z</td><td><b>5</b></td></tr>" in text
    assert "<p>A note.</p>" in text


# In the page: says what can be seen of it. Around it: a window of that width (a browser's own has a least one).
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
const seen = [...document.images].filter(i => i.naturalWidth > 0 && i.getBoundingClientRect().width > 300
  && i.getBoundingClientRect().right <= innerWidth && getComputedStyle(i).visibility == "visible");
const asked = performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:"));
parent.postMessage({width: innerWidth, seen: seen.length, images: document.images.length, asked: asked.length,
  fits: document.documentElement.scrollWidth <= innerWidth}, "*");
}, 200));</script></head>"""
WINDOW = """<!doctype html><script>addEventListener("message", e => document.title = JSON.stringify(e.data))</script>
<iframe src="probed.html" width="{}" height="2000" style="border: 0"></iframe>"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_all_figures_and_asks_for_nothing(page, saved, tmp_path, width):
    probed = page.read_text(encoding="utf-8").replace("</head>", PROBE)
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    (tmp_path / "window.html").write_text(WINDOW.format(width))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    flags += ["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000"]
    command = [CHROMIUM, *flags, "--dump-dom", (tmp_path / "window.html").as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found = json.loads(re.search(r"<title>(.*?)</title>", run.stdout).group(1))
    assert found == {"width": width, "seen": len(saved), "images": len(saved), "asked": 0, "fits": True}
    assert "CONSOLE" not in run.stderr
