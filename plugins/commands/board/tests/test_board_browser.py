"""The board clicked in a browser."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_saving.runs import processes

Serve = Callable[..., str]
MakeRun = Callable[..., Path]
Look = Callable[[Any], None]


def told(tab: Any) -> str:
    """The text of a page."""
    return str(tab.inner_text("main"))


def test_runs_are_looked_at_and_compared(
    serve: Serve, make_run: MakeRun, tab: Any, accessible: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("one", [2.0, 1.5])
    make_run("two", [2.0, 1.0], answer="five")
    make_run("sweep/trial-1", [3.0], status="failed")
    comparison = {"settings": {"train.seed": [0, None]}, "results": {"last loss": [1.5, 1.0]}}
    script = f"print({json.dumps(comparison)!r})"
    monkeypatch.setattr(processes, "ft", lambda *arguments: [sys.executable, "-c", script])
    tab.goto(serve())
    assert tab.locator("tbody tr").count() == 3
    accessible(tab)
    tab.get_by_role("link", name="one").click()
    tab.get_by_role("heading", name="Results").wait_for()
    assert "<script>alert(1)</script>" in told(tab), "what a run says is text"
    accessible(tab)
    tab.get_by_role("link", name="finetooth").click()
    tab.get_by_label("compare one").check()
    tab.get_by_label("compare two").check()
    tab.get_by_role("button", name="Compare").click()
    tab.get_by_role("heading", name="Runs side by side").wait_for()
    shown = told(tab)
    assert "train.seed" in shown and "not set" in shown and "five" in shown
    assert "one" in tab.locator("svg").first.text_content()
    accessible(tab)


def test_what_is_ticked_stays_ticked_when_the_list_is_renewed(serve: Serve, make_run: MakeRun, tab: Any) -> None:
    make_run("one", [2.0, 1.5])
    tab.goto(serve())
    tab.get_by_label("compare one").check()
    make_run("two", [2.0])
    tab.get_by_role("link", name="two").wait_for()
    assert tab.get_by_label("compare one").is_checked()
    assert tab.evaluate("document.activeElement.value") == "one", "the focus stays too"
