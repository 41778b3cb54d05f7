"""How a row becomes a datum: it passes each module of `rows` once on its way down, and none calls back up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import finetooth
import pytest

ROOM = "finetooth_rows"
METHODS = {
    "sft": {"messages": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}]},
    "dpo": {"prompt": "Two?", "chosen": "2", "rejected": "3"},
    "pretrain": {"text": "Two and two are four."},
}


class Walk:
    """Follows calls by `sys.setprofile`: which modules of a room are on the stack, in order, whatever lies between."""

    def __init__(self, room: str) -> None:
        self.room = room
        self.stack: list[str] = []
        self.visited: set[str] = set()
        self.climbs: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            self.stack.append(frame.f_globals.get("__name__", ""))
            inside = [name for name in self.stack if name.startswith(self.room)]
            entered = [name for i, name in enumerate(inside) if i == 0 or inside[i - 1] != name]
            self.visited.update(entered[-1:])
            if len(entered) > len(set(entered)):
                self.climbs.add(" > ".join(entered))
        elif event == "return" and self.stack:
            self.stack.pop()


@pytest.mark.parametrize("method", METHODS)
def test_a_row_enters_no_module_twice(method: str, tiny_model: Path, tmp_path: Path) -> None:
    """A module that a row left downwards does not get the row again before it is done."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(METHODS[method]) + "\n" for _ in range(3)), encoding="utf-8")
    data = {"train": str(rows), "renderer": "chatml"}
    session = finetooth.session({"model": str(tiny_model), "data": data, "method": method, "output": str(tmp_path)})
    walk = Walk(ROOM)
    sys.setprofile(walk)
    try:
        assert session.reports[0].rows == 3
    finally:
        sys.setprofile(None)
    assert {f"{ROOM}.preparing", f"{ROOM}.reading", f"{ROOM}.work"} <= walk.visited
    assert not walk.climbs


def test_a_call_back_up_is_a_climb() -> None:
    namespaces: list[dict[str, Any]] = [{"__name__": f"room.{name}"} for name in "ab"]
    exec("def down(other): return other(lambda: None)\ndef last(): pass", namespaces[0])
    exec("def across(up): return up()", namespaces[1])
    walk = Walk("room")
    sys.setprofile(walk)
    try:
        namespaces[0]["down"](lambda _: namespaces[1]["across"](namespaces[0]["last"]))
    finally:
        sys.setprofile(None)
    assert walk.climbs == {"room.a > room.b > room.a"}
