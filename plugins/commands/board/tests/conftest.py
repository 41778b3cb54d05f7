"""A board that is served, runs for it to show, and a browser to click in."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from finetooth_board.app import make_app
from finetooth_saving.runs import processes

EVIL = "<script>alert(1)</script>"
Serve = Callable[..., str]


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """Writes the folder of a run, whose texts are scripts."""
    return _make_run


def _make_run(name: str, losses: list[float], *, status: str = "done", answer: str = "4") -> Path:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"id": "1"}')
    (folder / "recipe.yaml").write_text(f"model: toy # {EVIL}\n")
    decisions = [{"setting": "train.precision", "value": "bf16", "reason": EVIL}]
    plan = {"recipe": {"model": f"toy{EVIL}"}, "picks": {"method": "a:sft"}, "total_steps": 4, "decisions": decisions}
    (folder / "plan.json").write_text(json.dumps(plan))
    lines: list[Any] = [
        {"event": "step", "step": n, "loss": loss, "seconds": 1.0, "metrics": {}} for n, loss in enumerate(losses, 1)
    ]
    sample = {"id": "r:1", "prompt": f"2+2? {EVIL}", "expected": "4", "answer": answer}
    lines += [
        {"event": "evaluation", "name": "exact_match", "step": step, "metrics": {"exact_match": 0.5}, "samples": [one]}
        for step, one in ((0, {**sample, "answer": "before"}), (2, sample))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status != "unfinished":
        (folder / "result.json").write_text(json.dumps({"status": status, "reason": "", "steps": len(losses)}))
    return folder


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves a board over the runs of an empty folder; returns its address."""
    monkeypatch.chdir(tmp_path)
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def begin(key: str = "", context: Any = None) -> str:
        server = uvicorn.Server(uvicorn.Config(make_app(key, context=context), port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield begin
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.fixture
def commands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What the board runs; the script `STAND_IN` of the tests' module answers for `ft`."""
    asked: list[tuple[str, ...]] = []

    def ft(*arguments: str) -> list[str]:
        asked.append(arguments)
        return [sys.executable, "-c", request.module.STAND_IN, *arguments]

    monkeypatch.setattr(processes, "ft", ft)
    return asked


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
