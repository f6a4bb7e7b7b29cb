"""The live page: served by the command, used in a browser, and asked for what it must not do."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from helpers import ROOT, image_files

pytest.importorskip("gradio", reason="Gradio is not installed")
PATIENCE = 180  # seconds, on a busy machine


@pytest.fixture(scope="module")
def address():
    """The address of a page of the bundled digits, served by `tools/demo.py`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "tools" / "demo.py"), "--device", "cpu", "--port", str(port)]
    command += ["--methods", "DDIM, F-PNDM, DPM-Solver++2M", "--calls", "10,20,40", "--images", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()) as server:
        try:
            assert "shows the page" in server.stdout.readline()
            yield f"http://127.0.0.1:{port}"
            assert server.poll() is None
        finally:
            server.terminate()


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


def said(page, text):
    """Wait until the page's line begins with `text`; returns the line."""
    check = "text => document.querySelector('#said textarea, #said input')?.value.startsWith(text)"
    page.wait_for_function(check, arg=text, timeout=1000 * PATIENCE)
    return page.locator("#said textarea, #said input").input_value()


def test_a_grid_of_digits_fills_and_what_is_copied_makes_its_bytes(address, visit, tmp_path):
    seen = visit(permissions=["clipboard-read", "clipboard-write"])
    page, begun = seen.page, time.monotonic()
    page.goto(address)
    page.wait_for_function("document.querySelectorAll('.tile .made').length === 36", timeout=1000 * PATIENCE)
    print(f"36 images after {time.monotonic() - begun:.1f} s")
    print(said(page, "done"))
    assert page.locator(".distance").count() == 9
    page.get_by_label("difference from the exact flow").check()
    assert page.locator(".tile .exact").first.evaluate("e => getComputedStyle(e).visibility") == "visible"
    entry = page.locator(".cells td").nth(1 + 1 * 3 + 1)  # F-PNDM, 20 calls, behind the corner
    entry.locator("summary").click()
    assert entry.locator(".strip img").count() == 10
    entry.locator("[data-copy]").first.click()
    page.wait_for_timeout(300)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "--method F-PNDM" in copied
    command = copied.replace("python main.py", f"{sys.executable} {ROOT / 'main.py'}")
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = list(image_files(next(tmp_path.glob("temp/demo/*"))).values())
    held = entry.locator(".made").evaluate_all("all => all.map(image => image.src.split(',')[1])")
    assert [base64.b64decode(text) for text in held] == made
    assert not seen.errors
    assert all(url.startswith((address, "data:", "blob:")) for url in seen.requests)
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/live.png", full_page=True)


def test_a_wrong_value_is_one_line_on_the_page_and_a_run_can_be_cancelled(address, visit):
    page = visit().page
    page.goto(address)
    said(page, "d")  # drawing, or done
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_timeout(500)
    page.get_by_label("network calls an image, the columns").fill("0")
    page.get_by_role("button", name="Draw").click()
    assert said(page, "not drawn").endswith("calls is '0'; it must be a whole number from 1 to 1000")
    page.get_by_label("network calls an image, the columns").fill("1000")
    page.get_by_role("button", name="Draw").click()
    said(page, "drawing")
    page.get_by_role("button", name="Cancel").click()
    assert said(page, "cancelled")


def get(url, data=None):
    """(status, text) of a request; data: sent as JSON."""
    body = None if data is None else data if isinstance(data, bytes) else json.dumps(data).encode()
    asked = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body else {})
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def drawn(address, data):
    """The last answer to a request for a grid: a list of HTML and a line, or what refused it."""
    status, text = get(f"{address}/gradio_api/call/draw", data)
    if status != 200:
        return status, text
    _, events = get(f"{address}/gradio_api/call/draw/{json.loads(text)['event_id']}")
    return status, events.rstrip().rpartition("data: ")[2]


RIGHT = [["DDIM"], ["uniform"], "4", "0", "2", "1", 0]
WRONG = [
    (0, ["<script>alert(1)</script>"]),
    (0, [{"a": [1]}]),
    (0, None),
    (0, ["DDIM"] * 1000),
    (1, ["../../etc/passwd"]),
    (2, "1" * 100_000),
    (2, "9999999"),
    (2, {"path": "/etc/passwd"}),
    (3, "-1"),
    (3, "1e400"),
    (4, "1000000"),
    (4, [4]),
    (5, "'; import os"),
    (6, "NaN"),
    (6, 1e308),
    (6, {}),
]
PATHS = ["file=/etc/passwd", "file=config/digits.yml", "file=../../../etc/passwd", "file=http://127.0.0.1:1/"]


def test_twenty_hostile_requests_are_refused_in_a_line_each_and_the_server_lives_on(address):
    for place, value in WRONG:
        status, last = drawn(address, {"data": [*RIGHT[:place], value, *RIGHT[place + 1 :]]})
        line = json.loads(last)[1]
        assert status == 200
        assert line.startswith("not drawn: ")
        assert len(line.splitlines()) == 1
        assert len(line) < 700
    for path in PATHS:
        status, text = get(f"{address}/gradio_api/{path}")
        assert 400 <= status < 500
        assert "root:" not in text
        assert len(text.splitlines()) == 1
    uploaded = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}  # Gradio itself refuses these
    for body in (b"{", {"data": 1}, {"data": []}, {"data": [*RIGHT[:2], uploaded, *RIGHT[3:]]}):
        status, last = drawn(address, body)
        assert status == 422 or json.loads(last) == {"error": None}
    _, last = drawn(address, {"data": RIGHT})
    assert json.loads(last)[1].startswith("done")
