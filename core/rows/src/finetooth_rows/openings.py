"""What rows in messages begin with, counted as they are read, so that what nearly all of them share can be kept."""

from __future__ import annotations

import json
from collections.abc import Mapping

from finetooth_hooks.data.examples import Conversation, Example, Labelled, Pair, Task, messages_of
from finetooth_toolbox.messages.openings import Opening

NEARLY_ALL = 0.95
"""The share of the rows in messages that must begin alike."""
MOST = 64
"""So many different beginnings are remembered; what nearly all rows share is never one of the rare ones."""
KINDS, SYSTEMS, TOOLS = "kinds", "systems", "tools"
TALK, TEXT = "talk", "text"

Counts = dict[str, dict[str, int]]
"""Rows by kind, by system message, and by their tools as JSON: plain data, as a tally keeps them."""


def count(counts: Counts, example: Example) -> None:
    """Count one example."""
    messages = messages_of(example)
    talk = bool(messages) or isinstance(example, Task)
    _add(counts, KINDS, TALK if talk else TEXT, 1)
    if messages and messages[0].role == "system" and messages[0].content:
        _add(counts, SYSTEMS, messages[0].content, 1)
    tools = example.tools if isinstance(example, Conversation | Pair | Labelled | Task) else ()
    if tools:
        _add(counts, TOOLS, json.dumps([dict(tool) for tool in tools], sort_keys=True, default=str), 1)


def merge(counts: Counts, later: Mapping[str, Mapping[str, int]]) -> None:
    """Add what was counted of the rows that follow."""
    for what, many in later.items():
        for value, number in many.items():
            _add(counts, what, value, number)


def rows_of_kind(counts: Counts, kind: str) -> int:
    """How many rows were in messages (`TALK`), or text (`TEXT`)."""
    return counts.get(KINDS, {}).get(kind, 0)


def shared(counts: Counts) -> Opening:
    """What nearly all rows in messages begin with; nothing if they begin in different ways."""
    of = rows_of_kind(counts, TALK)
    system, with_system = _commonest(counts, SYSTEMS)
    tools, with_tools = _commonest(counts, TOOLS)
    commonest = [(system, with_system), (tools, with_tools)]
    system, tools = (value if number >= NEARLY_ALL * of else "" for value, number in commonest)
    if not system and not tools:
        return Opening(of=of)
    number = min(many for value, many in commonest if value in (system, tools) and value)
    return Opening(system, tuple(json.loads(tools)) if tools else (), number, of)


def _commonest(counts: Counts, what: str) -> tuple[str, int]:
    return max(counts.get(what, {}).items(), key=lambda item: item[1], default=("", 0))


def _add(counts: Counts, what: str, value: str, number: int) -> None:
    many = counts.setdefault(what, {})
    if value not in many and len(many) >= MOST:
        rarest = min(many, key=lambda known: many[known])
        if many[rarest] > number:
            return
        del many[rarest]
    many[value] = many.get(value, 0) + number
