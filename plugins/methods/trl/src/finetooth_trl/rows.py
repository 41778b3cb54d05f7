"""Turns examples into rows with the columns of TRL's trainers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from finetooth_hooks.data.examples import (
    Conversation,
    Example,
    Labelled,
    Message,
    Pair,
    PromptCompletion,
    Side,
    Stepwise,
    Task,
    Text,
)
from finetooth_hooks.errors import DataError


def columns_of(examples: Sequence[tuple[str, Example]]) -> list[dict[str, Any]]:
    """Rows of one kind, each with the same columns.

    Raises:
        DataError: an example has a kind that no trainer supports, has images or sounds, or has another kind than the
            first.
    """
    rows: list[dict[str, Any]] = []
    for id_, example in examples:
        row = _row(id_, example)
        if rows and set(row) != set(rows[0]):
            raise DataError(
                id_,
                f"it gives the columns {', '.join(sorted(row))}, and the first row {', '.join(sorted(rows[0]))}",
                action="train rows of one kind at a time",
            )
        rows.append(row)
    return rows


def _row(id_: str, example: Example) -> dict[str, Any]:
    if isinstance(example, Conversation):
        tools = {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}
        begin = next((i for i, message in enumerate(example.messages) if message.train is not False), 0)
        if begin:  # an untrained beginning is a prompt
            prompt = [dataclasses.replace(message, train=None) for message in example.messages[:begin]]
            rest = example.messages[begin:]
            return {"prompt": _messages(id_, prompt), "completion": _messages(id_, rest), **tools}
        return {"messages": _messages(id_, example.messages), **tools}
    if isinstance(example, Text):
        return {"text": example.text}
    if isinstance(example, PromptCompletion):
        return {"prompt": example.prompt, "completion": example.completion}
    if isinstance(example, Pair):
        sides = {"prompt": example.prompt, "chosen": example.chosen, "rejected": example.rejected}
        return {name: _side(id_, side) for name, side in sides.items()}
    if isinstance(example, Labelled) and isinstance(example.label, bool):
        sides = {"prompt": example.prompt, "completion": example.completion}
        return {**{name: _side(id_, side) for name, side in sides.items()}, "label": example.label}
    if isinstance(example, Stepwise) and isinstance(example.prompt, str):
        labels = [label for label in example.labels if label is not None]
        if len(labels) == len(example.steps):
            return {"prompt": example.prompt, "completions": list(example.steps), "labels": [bool(x) for x in labels]}
    if isinstance(example, Task):
        return {**{str(name): value for name, value in example.columns.items()}, "prompt": _side(id_, example.prompt)}
    raise DataError(id_, f"no trainer of TRL takes {example.called} like this one", action="take a method of finetooth")


def _side(id_: str, side: Side) -> Any:
    return side if isinstance(side, str) else _messages(id_, side)


def _messages(id_: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for message in messages:
        if message.media or message.weights or message.train is not None:
            raise DataError(
                id_,
                "a trainer of TRL gets no images, no sounds and no marks of what trains",
                action="take a method of finetooth, or rows without them",
            )
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            row["reasoning_content"] = message.reasoning
        if message.tool_calls:
            row["tool_calls"] = [dict(call) for call in message.tool_calls]
        if message.name:
            row["name"] = message.name
        made.append(row)
    return made


__all__ = ["columns_of"]
