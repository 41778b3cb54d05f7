"""Counts the beginnings of rows in messages while they are read, so that a beginning that nearly all share can be
saved."""

from __future__ import annotations

import json
from collections.abc import Mapping

from finetooth_hooks.data.examples import Conversation, Example, Labelled, Pair, Task, messages_of
from finetooth_toolbox.messages.openings import Opening

NEARLY_ALL = 0.95
"""The share of the rows in messages that must begin alike."""
MOST = 64
"""Number of remembered beginnings; the one that nearly all rows share is never rare."""
KINDS, SYSTEMS, TOOLS = "kinds", "systems", "tools"
TALK, TEXT = "talk", "text"

Counts = dict[str, dict[str, int]]
"""Numbers of rows by kind, system message, and tools as JSON: plain data for a tally."""


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
    """Add the counts of later rows."""
    for what, many in later.items():
        for value, number in many.items():
            _add(counts, what, value, number)


def rows_of_kind(counts: Counts, kind: str) -> int:
    """Number of rows in messages (`TALK`), or in text (`TEXT`)."""
    return counts.get(KINDS, {}).get(kind, 0)


def shared(counts: Counts) -> Opening:
    """The beginning that nearly all rows in messages share; empty if they differ."""
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
