"""A browser for the demo's pages: Chromium through playwright, where both are there."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium: the one that the environment variable CHROMIUM names, or one on the PATH."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not path:
        pytest.skip("no Chromium: neither CHROMIUM names one, nor is one on the PATH")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """A page in the browser, with what it asked for and what it complained about."""

    def __init__(self, context):
        self.page, self.requests, self.errors = context.new_page(), [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))


@pytest.fixture
def visit(browser):
    """visit(width=…, …) → a `Visit` in a window of its own; more: of playwright's `new_context`."""
    contexts = []

    def opened(width=1400, **more):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **more))
        return Visit(contexts[-1])

    yield opened
    for context in contexts:
        context.close()
