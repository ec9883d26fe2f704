"""A real browser for tests of pages: Debian's Chromium, headless, driven by Playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Root has no sandbox, and a machine without a graphics card draws WebGL in software.
FLAGS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@dataclass
class Watched:
    """A page, what it has said on its console or thrown, and the addresses that it has asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def asked_network(self) -> list[str]:
        """Addresses that are no file and no data."""
        return [address for address in self.asked if not address.startswith(("file:", "data:", "blob:", "about:"))]


@contextlib.contextmanager
def launched(*flags: str) -> Iterator[Any]:
    """Launch a browser, or skip the test and say why; one at a time."""
    sync = pytest.importorskip("playwright.sync_api", reason="browser tests skipped: pip install playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("browser tests skipped: there is no Chromium; on Debian: apt-get install chromium")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def watched(browser: Any, **settings: Any) -> Iterator[Watched]:
    """A new page that knows nothing of others; settings are those of Playwright's `new_context`."""
    context = browser.new_context(**settings)
    try:
        watch = Watched(context.new_page())
        watch.page.on("console", lambda message: watch.said.append(f"{message.type}: {message.text}"))
        watch.page.on("pageerror", lambda error: watch.said.append(f"error: {error}"))
        watch.page.on("request", lambda request: watch.asked.append(request.url))
        yield watch
    finally:
        context.close()
