# ruff: noqa: RUF001  # the bars of these tokens are wide ones
"""What the markups of DeepSeek share: their control tokens, and how a completion is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Message
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import call_of, function_call

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, THOUGHT = "<think>", "</think>"
CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
OUTPUTS, OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
DSML = "｜DSML｜"
"""In the tags of V3.2 and V4."""

CONTROLS = (BEGIN, END, USER, ASSISTANT)
OPTIONAL = (
    THINK, THOUGHT, CALLS, CALLS_END, CALL, CALL_END, SEPARATOR, OUTPUTS, OUTPUTS_END, OUTPUT, OUTPUT_END,
)  # fmt: skip
"""Tokens in DeepSeek's own vocabulary; in Qwen's, which the distilled models have, those for tools are plain text."""


def function_of(call: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """Name and arguments of a call; these may be JSON text, which the models' own templates take too.

    Args:
        where: the message, `messages[3]`.

    Raises:
        DataError: it is not of the OpenAI shape.
    """
    function = call.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        function_call({"function": {**function, "arguments": {}}}, where)
        return function["name"], function["arguments"]
    return function_call(call, where)


def systems(messages: Sequence[Message]) -> int:
    """How many system messages the conversation begins with."""
    return next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))


def write_system(page: Page, messages: Sequence[Message], trained: Sequence[bool]) -> None:
    """System messages, a blank line between them, without markup of their own."""
    for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
        page.message()
        page.markup("\n\n" if i else "")
        page.say(message.content, trains, message.weights)


def read_calls(text: str, pattern: re.Pattern[str]) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """Content and calls of a completion; all is content where a call is broken.

    Args:
        pattern: of one call, with groups `name` and `arguments`.
    """
    content, opened, block = text.partition(CALLS)
    matches = list(pattern.finditer(block)) if opened else []
    if not matches or pattern.sub("", block).strip() not in ("", CALLS_END):
        return text, ()
    calls = []
    for call in matches:
        try:
            arguments = json.loads(call["arguments"])
        except (ValueError, RecursionError):
            return text, ()
        if not isinstance(arguments, dict):
            return text, ()
        calls.append(call_of(call["name"], arguments))
    return content, tuple(calls)
