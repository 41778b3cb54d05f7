"""A board that is served, runs for it to show, and a browser to click in."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from finetooth_board.app import make_app
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_saving.runs import processes

EVIL = "<script>alert(1)</script>"
Serve = Callable[..., str]


class WithoutPages(State):
    """What the command of the board gets where no plugin is installed."""

    catalog = SimpleNamespace(all=lambda kind: ())  # type: ignore[assignment]


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

    def begin(admits: Callable[[str], bool] | None = None, context: Any = None) -> str:
        server = uvicorn.Server(
            uvicorn.Config(make_app(context or WithoutPages(StartOptions()), admits), port=0, log_level="warning")
        )
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
