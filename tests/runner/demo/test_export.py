"""The demo as one file: written by the command, opened from the disk, used by mouse and keyboard."""

import io

import numpy as np
import pytest
from PIL import Image

from pndm import demo
from pndm.config.load import load
from pndm.runner.demo.cells import Artist
from pndm.runner.demo.page import source_of
from pndm.runner.demo.request import request_of

ASKED = ("--methods", "DDIM,F-PNDM,DDPM", "--calls", "4,12", "--images", "3")


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "page.html"
    assert demo.main(["--config", str(tiny.config), "--device", "cpu", *ASKED, "--export", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def cell(tiny):
    """The cell DDIM, 4 calls of that page."""
    import torch

    *_, last = Artist(load(str(tiny.config)), torch.device("cpu")).draw(request_of("DDIM", "uniform", "4", images=3))
    return last


def test_the_file_holds_the_images_themselves(exported, cell):
    text = exported.read_text(encoding="utf-8")
    assert all(source_of(image) in text for image in [*cell.images, *cell.exact])
    assert f'<span class="distance">{cell.distance:.2g}</span>' in text
    assert "http" not in text.replace("http-equiv", "")
    assert "draws noise: no exact flow" in text


def test_it_asks_for_nothing_but_itself_and_complains_of_nothing(exported, visit):
    seen = visit()
    seen.page.goto(exported.as_uri())
    seen.page.wait_for_timeout(300)
    assert [url for url in seen.requests if not url.startswith("data:")] == [exported.as_uri()]
    assert not seen.errors
    assert seen.page.locator(".tile .made").count() == 3 * 2 * 3
    assert seen.page.locator(".tile .made").evaluate_all("all => all.every(i => i.alt && i.naturalWidth === 8)")


def shown(page):
    """What is on the screen of the first tile, one grey level for each of its 8×8 pixels."""
    picture = Image.open(io.BytesIO(page.locator(".tile").first.screenshot())).convert("L")
    step = picture.width // 8
    return np.asarray(picture)[step // 2 :: step, step // 2 :: step][:8, :8].astype(int)


def test_images_difference_and_wipe_are_what_they_say(exported, cell, visit):
    page = visit().page
    page.goto(exported.as_uri())
    made, exact = (images[0, 0].numpy().astype(int) for images in (cell.images, cell.exact))
    assert abs(shown(page) - made).max() <= 1
    page.get_by_label("difference from the exact flow").check()
    assert abs(shown(page) - (255 - np.minimum(4 * abs(made - exact), 255))).max() <= 4
    page.get_by_label("exact flow, wiped over").check()
    assert abs(shown(page) - np.concatenate([exact[:, :4], made[:, 4:]], axis=1)).max() <= 1
    page.get_by_label("share of the exact flow").fill("100")
    assert abs(shown(page) - exact).max() <= 1


def test_strip_times_and_commands_unfold_by_keyboard(exported, visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"]).page
    page.goto(exported.as_uri())
    summary = page.locator("summary").first
    assert not page.locator(".strip").first.is_visible()
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open] .strip img").count() == 4
    assert page.locator("details[open] .times").get_attribute("aria-label").startswith("times of 4 calls, from t = 750")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first "copy"
    page.wait_for_timeout(200)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("python main.py --runner sample")
    assert copied == page.locator("details[open] pre").first.text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways_in_light_and_dark(exported, visit, scheme):
    page = visit(width=400, color_scheme=scheme).page
    page.goto(exported.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    ground = Image.open(io.BytesIO(page.screenshot())).convert("L").getpixel((2, 2))
    assert ground > 200 if scheme == "light" else ground < 60


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--methods", "DDIN"], "--methods: no method 'DDIN'; did you mean DDIM?"),
        (["--calls", "ten"], "--calls: calls is 'ten'"),
        (["--images", "99"], "--images: images is '99'"),
        (["--share", "2"], "--share: share is '2'"),
        (["--limit", "10"], "--calls: this asks for 192 images × calls; at most 10"),
        (["--config", "no.yml"], "--config: no file no.yml"),
        (["--set", "Sample.seed"], "--set: Sample.seed is not of the form"),
        (["--model_path", "no.pt"], "--model_path: no file no.pt"),
        (["--set", "Sample.model_path=no.pt"], "--set: no file no.pt"),
        (["--model_path", "temp/models/ddim_cifar10.ckpt"], "--model_path: no file temp/models/ddim_cifar10.ckpt; "),
        (["--other", "x"], "--other: second seed is 'x'"),
        (["--export", "."], "--export: . is a folder"),
        (["--export", "nowhere/page.html"], "--export: nowhere is not a folder"),
        (["--port", "70000"], "--port: 70000 is not a port"),
        (["--frames", "3"], "unknown flag --frames"),
    ],
)
def test_wrong_flags_are_one_line_and_write_nothing(tiny, tmp_path, monkeypatch, capsys, flags, line):
    monkeypatch.chdir(tmp_path)
    wanted = ["--config", str(tiny.config), "--device", "cpu", "--calls", "4,12", "--export", "page.html", *flags]
    try:
        status = demo.main(wanted)
    except SystemExit as end:
        status = end.code
    assert status == 2
    said = capsys.readouterr().err
    assert line in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())
