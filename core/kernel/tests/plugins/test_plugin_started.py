"""A process looks for its plugins once, however many sessions it makes; what a user's file says now counts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_core.plugins import manager
from finetooth_core.started import Started
from finetooth_hooks import PluginError


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was looked for."""
    found: list[Any] = []
    start = manager.start

    def counted(**what: Any) -> Any:
        found.append(what)
        return start(**what)

    monkeypatch.setattr(manager, "start", counted)
    return found


def test_sessions_of_one_process_share_what_was_found(searches: list[Any]) -> None:
    state = State(StartOptions())
    recipes = [{"model": "a"}, {"model": "b", "adapter": "full"}, {"model": "a"}]
    sessions = [state.session(recipe, data=False) for recipe in recipes]
    assert len(searches) == 1 and len({id(one.plugins) for one in sessions}) == 1
    other = State(StartOptions(blocked=("finetooth-lora",))).session({"model": "a"}, data=False)
    assert len(searches) == 2 and "finetooth-lora" not in other.plugins.versions


def test_a_file_that_was_changed_is_read_again(
    searches: list[Any], tmp_path: Path, site: Any, loss_plugin: Any
) -> None:
    file, started = tmp_path / "mine.py", Started()
    seen = []
    for name in ("wedge", "wedge", "pyramid"):
        text = loss_plugin(name)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
            os.utime(file, ns=(len(seen), len(seen)))
        seen.append(started.start(files=["mine.py"], blocked=(), base=tmp_path))
    assert seen[0] is seen[1] and len(searches) == 2
    assert seen[2].catalog.get("loss", "pyramid").distribution == "mine.py"
    with pytest.raises(PluginError):
        seen[2].catalog.get("loss", "wedge")


def test_what_could_not_be_found_is_looked_for_again(tmp_path: Path, site: Any, loss_plugin: Any) -> None:
    started = Started()
    with pytest.raises(PluginError):
        started.start(files=["mine.py"], blocked=(), base=tmp_path)
    (tmp_path / "mine.py").write_text(loss_plugin("wedge"))
    assert started.start(files=["mine.py"], blocked=(), base=tmp_path).catalog.get("loss", "wedge")
    with pytest.raises(PluginError):  # the same words mean another file elsewhere
        started.start(files=["mine.py"], blocked=(), base=tmp_path / "elsewhere")


def test_a_plugin_that_is_left_out_is_named_once(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("acme-broken", "raise RuntimeError('no luck')")
    state = State(StartOptions())
    for _ in range(3):
        state.session({"model": "a"}, data=False)
    assert capsys.readouterr().err.count("left out") == 1
