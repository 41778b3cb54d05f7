"""A browser to click in, for the tests of every package."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium. Its driver keeps an event loop running in this thread, so it ends before other tests begin
    theirs."""
    driver = pytest.importorskip("playwright.sync_api", reason="clicking takes the package playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("clicking takes the browser chromium")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A page of the browser; whatever its console says of errors fails the test, and so does a dialog. A form that the
    board refuses is none of them."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(60_000)
    opened, wrong = context.new_page(), []

    def said(line: Any) -> None:
        if line.type in ("error", "warning") and "status of 400" not in line.text:
            wrong.append(line.text)

    opened.on("console", said)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    yield opened
    context.close()
    assert not wrong


@pytest.fixture
def accessible() -> Callable[[Any], None]:
    """Asks axe-core of a page, at all of its rules, in light and dark and on a narrow screen."""
    module = pytest.importorskip(
        "axe_playwright_python", reason="looking at pages takes the package axe-playwright-python"
    )
    script = (Path(module.__path__[0]) / "axe.min.js").read_text(encoding="utf-8")

    def look(tab: Any) -> None:
        for scheme, width in (("light", 1100), ("dark", 390)):
            tab.emulate_media(color_scheme=scheme)
            tab.set_viewport_size({"width": width, "height": 800})
            tab.evaluate(script)  # past the page's policy, as a browser's own tools are
            found = tab.evaluate("axe.run()")["violations"]
            told = [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]
            assert not told, (tab.url, scheme, told)
        tab.emulate_media(color_scheme="light")
        tab.set_viewport_size({"width": 1100, "height": 800})

    return look
