"""Plugins and trackers beside a run: what they raise, and their state."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_core.plugins.events import PluginFailed
from finetooth_core.plugins.trackers import PickedTracker
from finetooth_hooks import (
    Interrupted,
)
from finetooth_saving.found_checkpoints import read
from finetooth_saving.run_state import Resumed
from finetooth_toolbox import blame


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_plugins_draw_goes_on_as_if_nothing_had_come_between(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """Neither what another process drew nor a step that was broken off is in the way of what comes next."""
    monkeypatch.setattr(kit.Engine, "zero_grad", lambda engine: None)
    whole = kit.Drawing()
    kit.make(tmp_path / "whole", whole).run()
    before = kit.Drawing(total=2)
    loop = kit.make(tmp_path / "cut", before, save=0 if interrupted else 2)  # else it is kept as it is broken off
    if interrupted:

        def broken_off() -> None:
            loop.interrupt.signal = signal.SIGINT
            raise Interrupted("broken off")

        before.total, before.at = 4, {3: broken_off}
    loop.run()
    assert before.drawn[:2] == whole.drawn[:2] and len(before.drawn) == 2 + interrupted
    random.seed(99)  # another process, with generators of its own
    np.random.seed(99)  # noqa: NPY002, RUF100
    rest = kit.Drawing()
    again = kit.make(tmp_path / "cut", rest)
    again.go_on(read(tmp_path / "cut" / "checkpoints" / "step-2"), Resumed(2))
    again.run()
    assert rest.drawn == whole.drawn[2:]


def test_a_plugin_has_its_state_before_the_first_step_of_a_run_that_goes_on(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    kit.make(tmp_path, kit.Method(total=2), kit.Listener(), save=2).run()
    loop = kit.resumed(tmp_path, 2, kit.Listener())
    assert loop.events.state() == {"listener": {"seen": 2}}
    loop.run()
    assert loop.events.state() == {"listener": {"seen": 4}}


def test_a_plugin_the_user_named_fails_the_run_and_any_other_only_warns(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(blame._owners, kit.Listener.__module__, "acme 1.2")  # what is written here
    with pytest.raises(PluginFailed, match=r"listener failed in ft_step: ZeroDivisionError"):
        kit.make(tmp_path / "a", kit.Method(), kit.Listener(raises={"ft_step": ZeroDivisionError()})).run()
    assert kit.result(tmp_path / "a")["exit_code"] == 1
    listener = kit.Listener(named_by_user=False, raises={"ft_step": ValueError("first\nsecond")})
    loop = kit.make(tmp_path / "b", kit.Method(), listener)
    assert loop.run().status == "done"
    assert listener.told.count("ft_step") == 1
    (line,) = [line for line in loop.said if "not called again" in line]
    assert line.startswith("plugin listener failed in ft_step: ValueError: first second [")
    assert f"{Path(__file__).with_name('conftest.py')}:" in line


def test_a_tracker_that_fails_at_the_end_does_not_lose_the_result(kit: SimpleNamespace, tmp_path: Path) -> None:
    plugin = kit.Listener()
    full = PickedTracker("acme:full", kit.Counting(fails_at_the_end=True), named_by_user=True)
    loop = kit.make(tmp_path, kit.Method(), plugin, trackers=(full,))
    with pytest.raises(PluginFailed, match=r"tracker acme:full failed in end: OSError: .* No space left"):
        loop.run()
    assert plugin.told[-1] == "ft_run_end"
    assert (kit.result(tmp_path)["status"], kit.result(tmp_path)["exit_code"]) == ("failed", 1)


def test_a_tracker_that_nobody_named_never_ends_a_run(kit: SimpleNamespace, tmp_path: Path) -> None:
    full = PickedTracker("acme:full", kit.Counting(fails_at_the_end=True), named_by_user=False)
    loop = kit.make(tmp_path, kit.Method(), trackers=(full,))
    assert (loop.run().status, kit.result(tmp_path)["exit_code"]) == ("done", 0)
    assert [line for line in loop.said if "acme:full" in line and "not called again" in line]


def test_the_state_of_a_tracker_is_in_the_checkpoints(kit: SimpleNamespace, tmp_path: Path) -> None:
    counting = PickedTracker("acme:counting", kit.Counting(), named_by_user=True)
    kit.make(tmp_path, kit.Method(), kit.Listener(), save=3, trackers=(counting,)).run()
    state = json.loads((tmp_path / "checkpoints" / "step-3" / "state.json").read_text())
    assert state["plugins"] == {"listener": {"seen": 3}, "tracker:acme:counting": {"steps": 3}}


def test_a_state_that_json_cannot_keep_is_refused_by_plugin_and_key(kit: SimpleNamespace, tmp_path: Path) -> None:
    class Forgetful(kit.Listener):
        def call(self, hook: str, **arguments: Any) -> None:
            arguments["run"].state["seen"] = {1, 2}

    with pytest.raises(PluginFailed, match=r"plugin listener: run.state\['seen'\] is \{1, 2\}"):
        kit.make(tmp_path, kit.Method(), Forgetful(), save=2).run()
