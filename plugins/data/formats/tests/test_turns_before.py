"""System messages and earlier turns in columns of their own, empty system messages, and roles of other tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, PromptCompletion, Row

Make = Callable[..., Any]

ROWS = [
    ("instruction", {"instruction": "q", "output": "a"}),
    ("prompt_completion", {"prompt": "q", "completion": "a"}),
]
ASKED = (Message("user", "q"), Message("assistant", "a"))


@pytest.mark.parametrize(("name", "values"), ROWS)
def test_system_and_history_are_turns_before_the_question(format_of: Make, name: str, values: dict[str, Any]) -> None:
    more = {"system": "s", "history": [["q0", "a0"], ("q1", "a1")]}
    before = [("system", "s"), ("user", "q0"), ("assistant", "a0"), ("user", "q1"), ("assistant", "a1")]
    wanted = Conversation((*(Message(*one) for one in before), *ASKED))
    assert format_of(name).read(Row("1", {**values, **more})) == wanted
    assert format_of(name, system="other").read(Row("1", {**values, **more})) == wanted
    for nothing in ({"history": []}, {"history": None, "system": ""}, {"history": ""}):
        assert format_of(name).read(Row("1", {**values, **nothing})) == Conversation(ASKED)
    assert format_of(name, history="", system_column="").read(Row("1", {**values, **more})) == Conversation(ASKED)


@pytest.mark.parametrize(("name", "values"), ROWS)
@pytest.mark.parametrize(
    ("history", "problem"),
    [
        ("then", "history is text, not a list of pairs"),
        (["q", "a"], r"history\[0\] is text, not a question and its answer"),
        ([["q", "a"], ["q"]], r"history\[1\] is a list of 1, not a question"),
        ([["q", 3]], r"history\[0\]\[1\] is a number, not text"),
        ([["", "a"]], r"history\[0\]\[0\] is empty"),
        ([["\ud83d", "a"]], r"history\[0\]\[0\] is not Unicode text"),
    ],
)
def test_another_history_is_named(
    format_of: Make, name: str, values: dict[str, Any], history: Any, problem: str
) -> None:
    with pytest.raises(DataError, match=f"f:2: {problem}"):
        format_of(name).read(Row("f:2", {**values, "history": history}))


def test_raw_prompts_take_neither(format_of: Make) -> None:
    values = {"prompt": "q", "completion": "a", "system": "s", "history": [["q0", "a0"]]}
    assert format_of("prompt_completion", style="raw").read(Row("1", values)) == PromptCompletion("q", "a")


def test_a_prompt_of_messages_takes_the_system_column(format_of: Make) -> None:
    prompt = [{"role": "user", "content": "q"}]
    values = {"prompt": prompt, "completion": [{"role": "assistant", "content": "a"}], "system": "s"}
    found = format_of("prompt_completion").read(Row("1", values))
    assert found.messages[0] == Message("system", "s") and len(found.messages) == 3


def test_an_empty_system_message_stays_for_the_renderer(format_of: Make) -> None:
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    found = format_of("chat").read(Row("1", {"messages": messages}))
    assert found == Conversation((Message("system", ""), *ASKED))
    for role in ("user", "assistant"):
        empty = [{**message, "content": ""} if message["role"] == role else message for message in messages]
        with pytest.raises(DataError, match="content is empty"):
            format_of("chat").read(Row("1", {"messages": empty}))


@pytest.mark.parametrize(
    "turns",
    [
        {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"}]},
        {"conversations": [{"from": "developer", "value": "s"}, {"from": "human", "value": "q"}]},
    ],
)
def test_developer_is_suggested_as_system(format_of: Make, turns: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"'developer', accepted are .*roles: \{developer: system\}"):
        format_of("chat").read(Row("1", turns))
    found = format_of("chat", roles={"developer": "system"}).read(Row("1", turns))
    assert [message.role for message in found.messages] == ["system", "user"]
