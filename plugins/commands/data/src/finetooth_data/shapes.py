"""Examples as rows of a shape that other tools read, and what of an example a shape has no place for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetooth_hooks.data.examples import (
    Conversation,
    Example,
    Labelled,
    Message,
    Pair,
    PromptCompletion,
    Side,
    Text,
)

NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
"""Roles as ShareGPT calls them."""


class Unwritable(Exception):
    """A shape has no place for something that an example says."""


def messages(example: Example) -> list[dict[str, Any]]:
    if not isinstance(example, Conversation):
        raise Unwritable(f"{example.called} is not a conversation")
    row: dict[str, Any] = {"messages": [_message(message) for message in example.messages]}
    if example.tools:
        row["tools"] = [dict(tool) for tool in example.tools]
    return [row]


def _message(message: Message) -> dict[str, Any]:
    if message.media or message.weights or message.reasoning_weights:
        raise Unwritable("images or sounds, or parts of a message that train differently from the rest")
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        made["reasoning_content"] = message.reasoning
    if message.tool_calls:
        made["tool_calls"] = [{"type": "function", **dict(call)} for call in message.tool_calls]
    if message.name:
        made["name"] = message.name
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    if message.train is not None:
        made["train"] = message.train
    return made


def _plain(messages: Sequence[Message]) -> list[Message]:
    """
    Raises:
        Unwritable: a message says more than a role and a text.
    """
    for message in messages:
        if set(_message(message)) != {"role", "content"}:
            raise Unwritable(f"fields of messages: {', '.join(sorted(set(_message(message)) - {'role', 'content'}))}")
    return list(messages)


def _turns(example: Example) -> tuple[str, list[tuple[str, str]]]:
    """The system message, and questions with their answers.

    Raises:
        Unwritable: it is not a conversation, has tools, or its turns are not questions each with an answer.
    """
    if not isinstance(example, Conversation):
        raise Unwritable(f"{example.called} is not a conversation")
    if example.tools:
        raise Unwritable("tools")
    turns = _plain(example.messages)
    system = turns.pop(0).content if turns and turns[0].role == "system" else ""
    roles = [message.role for message in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise Unwritable("turns that are not pairs of a question and an answer")
    return system, [(turns[i].content, turns[i + 1].content) for i in range(0, len(turns), 2)]


def sharegpt(example: Example) -> list[dict[str, Any]]:
    if not isinstance(example, Conversation):
        raise Unwritable(f"{example.called} is not a conversation")
    if example.tools:
        raise Unwritable("tools")
    return [
        {
            "conversations": [
                {"from": NAMES[message.role], "value": message.content} for message in _plain(example.messages)
            ]
        }
    ]


def alpaca(example: Example) -> list[dict[str, Any]]:
    system, turns = _turns(example)
    row: dict[str, Any] = dict(instruction=turns[-1][0], input="", output=turns[-1][1])  # noqa: C408
    if system:
        row["system"] = system
    if len(turns) > 1:
        row["history"] = [list(turn) for turn in turns[:-1]]
    return [row]


def prompt_completion(example: Example) -> list[dict[str, Any]]:
    if isinstance(example, PromptCompletion):
        return [{"prompt": example.prompt, "completion": example.completion}]
    system, turns = _turns(example)
    if len(turns) > 1:
        raise Unwritable("more than one question")
    return [{"prompt": turns[0][0], "completion": turns[0][1], **({"system": system} if system else {})}]


def _side(side: Side) -> Any:
    return side if isinstance(side, str) else [_message(message) for message in side]


def preference(example: Example) -> list[dict[str, Any]]:
    if not isinstance(example, Pair):
        raise Unwritable(f"{example.called} is not a pair of answers")
    row = {name: _side(getattr(example, name)) for name in ("prompt", "chosen", "rejected")}
    if example.margin is not None:
        row["margin"] = example.margin
    if example.tools:
        row["tools"] = [dict(tool) for tool in example.tools]
    return [row]


def kto(example: Example) -> list[dict[str, Any]]:
    if isinstance(example, Pair):
        if example.margin is not None or example.tools:
            raise Unwritable("the margin of a pair, or tools")
        prompt = _side(example.prompt)
        sides = ((example.chosen, True), (example.rejected, False))
        return [{"prompt": prompt, "completion": _side(side), "label": label} for side, label in sides]
    if not isinstance(example, Labelled):
        raise Unwritable(f"{example.called} has no label")
    row = {"prompt": _side(example.prompt), "completion": _side(example.completion), "label": example.label}
    return [{**row, "tools": [dict(tool) for tool in example.tools]} if example.tools else row]


def text(example: Example) -> list[dict[str, Any]]:
    if not isinstance(example, Text):
        raise Unwritable(f"{example.called} is not a plain text: all its parts would train alike")
    return [{"text": example.text}]


SHAPES: Mapping[str, Callable[[Example], list[dict[str, Any]]]] = {
    make.__name__: make for make in (messages, sharegpt, alpaca, prompt_completion, preference, kto, text)
}
"""Shapes by the names that they have in the field; each makes rows of an example, or raises `Unwritable`."""

__all__ = ["SHAPES", "Unwritable"]
