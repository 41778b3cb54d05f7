# ruff: noqa: RUF001  # the bars of these tokens are wide ones
"""What the markups of DeepSeek share: their control tokens, and how a completion is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.examples import Weighted
from finetooth_hooks.page import Page
from finetooth_hooks.tool_calls import call_of, called
from finetooth_hooks.turns import TurnRenderer

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


class Thought(NamedTuple):
    """Where an answer says what.

    Attributes:
        inline: its reasoning stands in the content, before a `</think>`.
        reasoning: range of `Message.reasoning`, or of the content if `inline`, without an opening `<think>`.
        content: range of the content behind that `</think>`; all of it without one.
        beside: the content has reasoning, and the message has another one of its own.
    """

    inline: bool
    reasoning: tuple[int, int]
    content: tuple[int, int]
    beside: bool = False


def thought_of(message: Message, *, last: bool) -> Thought:
    """Reasoning and answer of a message of the assistant; the templates write of a content only what stands behind a
    `</think>`.

    Args:
        last: behind the last one, not the first.
    """
    content, own = message.content, (0, len(message.reasoning))
    stop = content.rfind(THOUGHT) if last else content.find(THOUGHT)
    if stop < 0:
        return Thought(False, own, (0, len(content)))
    answer = (stop + len(THOUGHT), len(content))
    start = stop - len(content[:stop].lstrip())
    start = start + len(THINK) if content.startswith(THINK, start) else 0
    thinks = bool(content[start:stop].strip())
    if message.reasoning or not thinks:
        return Thought(False, own, answer, beside=thinks)
    return Thought(True, (start, stop), answer)


def written_thought(
    renderer: TurnRenderer, message: Message, where: str, *, last: bool
) -> tuple[str, tuple[Weighted, ...], tuple[int, int]]:
    """The text in which the reasoning of a message stands, that text's weights, and the range of the reasoning.

    Raises:
        DataError: it spells a think block, so that it would be read back as something else.
    """
    thought = thought_of(message, last=last)
    said, weights = (message.reasoning, message.reasoning_weights)
    if thought.inline:
        said, weights = message.content, message.weights
    inside = said[slice(*thought.reasoning)]
    if THINK in inside or THOUGHT in inside:
        raise renderer.refuse("one think block, and here is a second inside or before it", where, "fix the row")
    return said, weights, thought.reasoning


def whole_content(conversation: Conversation, i: int) -> bool:
    """The templates write the content of message i as it is: it has calls, or follows what a tool said."""
    messages = conversation.messages
    return bool(messages[i].tool_calls) or (i > 0 and messages[i - 1].role == "tool")


def remarks(conversation: Conversation, written: Sequence[bool], *, last: bool) -> tuple[str, ...]:
    """What of a conversation is not written down.

    Args:
        written: of which messages the reasoning is.
        last: as `thought_of` takes it.
    """
    found: dict[str, None] = {}
    for i, (message, kept) in enumerate(zip(conversation.messages, written, strict=True)):
        cut = message.role == "assistant" and (kept or not whole_content(conversation, i))
        thought = thought_of(message, last=last) if cut else None
        if not kept and (message.reasoning or (thought is not None and thought.inline)):
            found["reasoning left out"] = None
        if thought is not None and thought.beside:
            found["a think block beside reasoning left out"] = None
    if conversation.tools:
        found["tool schemas left out"] = None
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
