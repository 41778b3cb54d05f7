# ruff: noqa: RUF001  # the bars of these tokens are wide ones
"""What the markups of DeepSeek share: their control tokens, and how a completion is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.page import Page
from finetooth_hooks.tool_calls import call_of, called

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, THOUGHT = "<think>", "</think>"
CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
OUTPUTS, OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"

CONTROLS = (BEGIN, END, USER, ASSISTANT)
OPTIONAL = (
    THINK, THOUGHT, CALLS, CALLS_END, CALL, CALL_END, SEPARATOR, OUTPUTS, OUTPUTS_END, OUTPUT, OUTPUT_END,
)  # fmt: skip
"""Tokens in DeepSeek's own vocabulary; in Qwen's, which the distilled models have, those for tools are plain text."""


class ThinkingOptions(Options):
    """What the renderers of DeepSeek have in common."""

    thinking: bool = False
    """The model thinks: the prompt opens a think block, and the first answer to the last question is written with its
    reasoning. Without it reasoning is left out, as the models' own templates do, and counted."""
    keep_reasoning: bool = False
    """With `thinking`: write the reasoning of the answers to earlier questions too."""


def function_of(call: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """Name and arguments of a call; these may be JSON text, which the models' own templates take too.

    Args:
        where: the message, `messages[3]`.

    Raises:
        DataError: it is not of the OpenAI shape.
    """
    function = call.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        called({"function": {**function, "arguments": {}}}, where)
        return function["name"], function["arguments"]
    return called(call, where)


def last_question(messages: Sequence[Message]) -> int:
    """Index of the last message of the user, -1 without one."""
    return max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)


def systems(messages: Sequence[Message]) -> int:
    """How many system messages the conversation begins with."""
    return next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))


def write_system(page: Page, messages: Sequence[Message], trained: Sequence[bool]) -> None:
    """System messages, a blank line between them, without markup of their own."""
    for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
        page.message()
        page.markup("\n\n" if i else "")
        page.say(message.content, trains, message.weights)


def after_thought(text: str, *, last: bool) -> tuple[int, int]:
    """The range of a content behind a `</think>` that it spells, all of it if it spells none.

    Args:
        last: behind the last one, not the first.
    """
    at = text.rfind(THOUGHT) if last else text.find(THOUGHT)
    return (0 if at < 0 else at + len(THOUGHT)), len(text)


def remarks(conversation: Conversation, written: Sequence[bool]) -> tuple[str, ...]:
    """What of a conversation is not written down.

    Args:
        written: of which messages the reasoning is.
    """
    found = []
    if any(message.reasoning and not kept for message, kept in zip(conversation.messages, written, strict=True)):
        found.append("reasoning left out")
    if conversation.tools:
        found.append("tool schemas left out")
    return tuple(found)


def read_calls(text: str, pattern: re.Pattern[str]) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """Content and calls of a completion; all is content where a call is broken.

    Args:
        pattern: of one call, with groups `name` and `arguments`.
    """
    content, opened, block = text.partition(CALLS)
    found = list(pattern.finditer(block)) if opened else []
    if not found or pattern.sub("", block).strip() not in ("", CALLS_END):
        return text, ()
    calls = []
    for call in found:
        try:
            arguments = json.loads(call["arguments"])
        except (ValueError, RecursionError):
            return text, ()
        if not isinstance(arguments, dict):
            return text, ()
        calls.append(call_of(call["name"], arguments))
    return content, tuple(calls)
