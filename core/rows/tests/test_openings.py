"""What rows share, counted by portions."""

from __future__ import annotations

import json
from typing import Any

from finetooth_hooks import Conversation, Message, Text
from finetooth_rows import openings
from finetooth_rows.tally import Tally
from hypothesis import given
from hypothesis import strategies as st

TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}


def talk(system: str, *, tools: bool = False) -> Conversation:
    first = (Message("system", system),) if system else ()
    return Conversation((*first, Message("user", "Hi"), Message("assistant", "Ho")), (TOOL,) if tools else ())


def counted(rows: list[Any]) -> openings.Counts:
    counts: openings.Counts = {}
    for row in rows:
        openings.count(counts, row)
    return counts


def test_what_nineteen_of_twenty_rows_begin_with_is_shared() -> None:
    rows = [talk("You are Lumi.", tools=True)] * 19
    found = openings.shared(counted([*rows, talk(""), Text("not counted")]))
    assert (found.system, found.tools, found.rows, found.of) == ("You are Lumi.", (TOOL,), 19, 20)
    assert not openings.shared(counted([*rows, talk(""), talk("Other")]))
    assert not openings.shared(counted([Text("a")] * 20)) and not openings.shared({})


@given(st.lists(st.sampled_from(["", "a", "b"]), max_size=30), st.integers(0, 30))
def test_portions_add_up(systems: list[str], at: int) -> None:
    rows = [talk(system) for system in systems]
    whole, first, rest = Tally(), Tally(), Tally()
    whole.openings, first.openings, rest.openings = counted(rows), counted(rows[:at]), counted(rows[at:])
    first.merge(Tally.from_json(json.loads(json.dumps(rest.as_json()))))
    assert first.openings == whole.openings


def test_many_beginnings_are_not_all_remembered_and_hide_none() -> None:
    rows = [talk(f"number {number}") for number in range(500)] + [talk("You are Lumi.")] * 19 * 500
    counts = counted(rows)
    assert len(counts[openings.SYSTEMS]) <= openings.MOST and openings.shared(counts).system == "You are Lumi."
