"""Tools for runs: what they tell of a run's folder, and what they refuse."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mcp")

from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_mcp import runs
from finetooth_mcp.face import call_tool_result
from finetooth_mcp.rows import Readers
from finetooth_mcp.tools import Desk
from finetooth_saving.runs import processes


def call(tool: str, /, *, scopes: tuple[str, ...] = ("admin",), **arguments: Any) -> Any:
    service: Any = SimpleNamespace(record=lambda *given, **more: None, context=State(StartOptions()))
    caller = SimpleNamespace(tenant="me", may=lambda scope: scope in scopes)
    return asyncio.run(call_tool_result(Desk(service, Readers(service), caller), tool, arguments))


@pytest.fixture
def stalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended, whose loss did not move."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "recipe.yaml").write_text("model: toy\n")
    (folder / "result.json").write_text(json.dumps({"status": "done", "steps": 120}))
    lines = [{"event": "step", "step": n + 1, "loss": 2.0, "grad_norm": 0.5, "metrics": {}} for n in range(120)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.yaml").write_text("model: toy\n")
    return folder


def test_runs_are_listed_shown_and_diagnosed(stalled: Path) -> None:
    listed = call("list_runs").structured_content["runs"]
    assert [(one["run"], one["status"], one["steps"]) for one in listed] == [("mine", "done", 120)]
    shown = call("show_run", run="mine").structured_content
    points = shown["curves"]["loss"]
    assert shown["recipe"] == "model: toy\n" and points[0][0] == 1 and points[-1][0] == 120 and len(points) <= 51
    processes.log_of(stalled.with_name("refused")).write_text("error: no such file\n")
    refused = call("show_run", run="refused").structured_content
    assert (refused["status"], refused["output"]) == ("failed", "error: no such file\n")  # nothing is on its way
    assert "the loss stands still at 2" in call("diagnose_run", run="mine").structured_content["wrong"][0]


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("show_run", {"run": "../etc"}, "is not a plain name"),
        ("show_run", {"run": "other"}, "no run 'other' (list_runs names them)"),
        ("stop_run", {"run": "mine"}, "runs/mine is not under way"),
        ("start_run", {"recipe": "/etc/recipe.yaml", "name": "new"}, "is not a plain name"),
        ("start_run", {"recipe": "none.yaml", "name": "new"}, "no file 'none.yaml'"),
        ("start_run", {"recipe": "recipe.yaml", "name": "mine"}, "there is a run runs/mine"),
        ("start_run", {"recipe": "recipe.yaml", "name": "new", "overrides": ["plugins=[evil.py]"]}, "is not taken"),
        ("start_run", {"recipe": "recipe.yaml", "name": "new", "overrides": ["adapter.x=/etc/x"]}, "is not taken"),
    ],
)
def test_what_is_refused_is_one_line(stalled: Path, name: str, arguments: dict[str, Any], said: str) -> None:
    result = call(name, **arguments)
    assert result.is_error and said in result.content[0].text and "\n" not in result.content[0].text
    assert not (stalled.parent / "new").exists()


@pytest.mark.parametrize("name", ["list_runs", "show_run", "diagnose_run", "start_run", "stop_run"])
def test_runs_are_for_who_runs_the_server(stalled: Path, name: str) -> None:
    arguments = {"list_runs": {}, "start_run": {"recipe": "recipe.yaml", "name": "new"}}.get(name, {"run": "mine"})
    result = call(name, scopes=("read", "train", "sample"), **arguments)
    assert result.is_error and "need a key with the scope admin" in result.content[0].text


def test_a_run_that_an_assistant_starts_has_no_secret_of_the_server(
    stalled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    for name in processes.OWN:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setattr(processes.subprocess, "Popen", lambda command, **how: given.update(how))
    monkeypatch.setattr(processes, "BEGUN", [])
    runs.start(State(StartOptions()), "recipe.yaml", "another", [])
    assert given["env"]["PATH"] and "secret" not in given["env"].values()
