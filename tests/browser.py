"""A headless Chromium for tests of web pages: Debian's, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright

from models.errors import SetupError
from tests import apt

# Nothing of the browser's own may go to the web.
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """The path of the browser, installed with apt where it is missing. Raises SetupError."""
    remedy = "install Chromium"
    found = shutil.which("chromium")
    if found is None:
        said = apt.install("chromium", remedy=remedy)
        found = shutil.which("chromium")
        if found is None:
            raise SetupError(f"apt did not install Chromium: {said}", remedy=remedy)
    return found


@contextmanager
def reading(path: Path, width: int) -> Iterator[tuple[Page, set[str]]]:
    """A file in a window that wide, and all addresses that it asked for anything at."""
    asked: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": 844})
            page.on("request", lambda request: asked.add(request.url))
            page.goto(path.as_uri())
            yield page, asked
        finally:
            browser.close()


@contextmanager
def browsing(user: str, password: str) -> Iterator[tuple[Page, set[str]]]:
    """A page that logs in as asked, and the hosts that it has asked for anything so far."""
    asked: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_FLAGS)
        try:
            context = browser.new_context(
                http_credentials={"username": user, "password": password},
                viewport={"width": 1640, "height": 640},
            )
            context.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
            yield context.new_page(), asked
        finally:
            browser.close()
