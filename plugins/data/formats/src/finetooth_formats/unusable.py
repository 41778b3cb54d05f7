"""Rows that are of the format and yet teach nothing: left out and counted by reason, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from finetooth_hooks import DataError, Row
from finetooth_hooks.data.examples import LeftOut, Message

Policy = Literal["drop", "raise"]
"""`drop` leaves such a row out and counts it, `raise` is an error."""

NO_PROMPT = "the prompt is empty"


class Judging(Protocol):
    """Options that say how to treat such a row."""

    @property
    def unusable(self) -> Policy: ...
    @property
    def model_fields_set(self) -> set[str]: ...


def left_out(row: Row, reason: str, options: Judging, action: str = "remove the row") -> LeftOut:
    """In place of an example.

    Args:
        reason: the same words for every such row.
        options: `drop` that the recipe says itself holds for methods that refuse such rows, too.

    Raises:
        DataError: `unusable` is `raise`.
    """
    if options.unusable == "raise":
        raise DataError(row.id, reason, action=action)
    return LeftOut(reason, settled="unusable" in options.model_fields_set)


def says_nothing(message: Message) -> bool:
    """Neither text nor a call."""
    return not (message.content.strip() or message.reasoning.strip() or message.tool_calls or message.media)


def no_prompt(prompt: Sequence[Message] | str) -> bool:
    """Whether all messages except a system message are empty; plain text may be empty if rows have no prompt."""
    if isinstance(prompt, str):
        return False
    return all(says_nothing(message) for message in prompt if message.role != "system")


def answer_problem(answer: Sequence[Message] | str, name: str) -> str:
    """Why an answer cannot be used, empty if it can.

    Args:
        name: its name, `chosen`.
    """
    if isinstance(answer, str):
        return "" if answer.strip() else f"{name} is empty"
    if says_nothing(answer[-1]):
        return f"{name} is empty"
    if answer[-1].role != "assistant":
        return f"{name} does not end with the assistant's message"
    return ""
