"""Calls and the results that answer them: what contradicts itself is refused, what may be meant so is told."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_hooks import DataError, Message
from finetooth_rows.noticing import ORPHAN, SHUFFLED, TWICE, UNDECLARED, UNNAMED, check_links

TOOLS = ({"type": "function", "function": {"name": "clock"}}, {"name": "weather"})


def calls(*ids: str, name: str = "clock") -> Message:
    made: list[dict[str, Any]] = [{"type": "function", "function": {"name": name, "arguments": {}}} for _ in ids]
    return Message("assistant", "", tool_calls=tuple({**call, "id": id_} for call, id_ in zip(made, ids, strict=True)))


def result(id_: str = "", name: str = "") -> Message:
    return Message("tool", "12:00", tool_call_id=id_, name=name)


ASK, SAY = Message("user", "The time?"), Message("assistant", "Noon.")


@pytest.mark.parametrize(
    "messages",
    [
        (ASK, SAY),
        (ASK, calls("a"), result("a"), SAY),
        (ASK, calls("a", "b"), result("a"), result("b"), SAY),
        (ASK, calls("a"), result("a"), calls("a"), result("a"), SAY),  # ids that begin anew with every turn
        (ASK, calls(""), result(), SAY),
        (ASK, calls(""), result("whatever"), SAY),  # the calls have none to compare with
        (ASK, calls("a"), result(name="clock"), SAY),
    ],
)
def test_what_belongs_together_passes(messages: tuple[Message, ...]) -> None:
    assert check_links(messages, TOOLS) == ()


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ((ASK, calls("a"), result("z")), r"messages\[2\]\.tool_call_id: it is 'z', which no call has.*'a'"),
        ((ASK, calls("a", "a"), result("a")), r"messages\[1\]: two of its calls have the id 'a'"),
    ],
)
def test_contradictions_are_refused(messages: tuple[Message, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        check_links(messages, TOOLS)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ((ASK, result("a"), SAY), ORPHAN),
        ((ASK, calls("a"), result("a"), result(), SAY), ORPHAN),
        ((ASK, calls("a", "b"), result("a"), result("a"), SAY), TWICE),
        ((ASK, calls("a", "b"), result("b"), result("a"), SAY), SHUFFLED),
        ((ASK, calls("a"), result("a", name="weather"), SAY), UNNAMED),
        ((ASK, calls("a", name="calendar"), result("a"), SAY), UNDECLARED),
    ],
)
def test_what_may_be_wrong_is_told(messages: tuple[Message, ...], told: str) -> None:
    assert told in check_links(messages, TOOLS)


def test_without_declared_tools_any_function_may_be_called() -> None:
    assert check_links((ASK, calls("a", name="calendar"), result("a"))) == ()
