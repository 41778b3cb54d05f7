"""What a template leaves out of a conversation, found by rendering it again with something else in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetooth_hooks import Conversation, DataError, Message
from finetooth_toolbox.messages.encoding import Encoder

from finetooth_jinja.shapes import Shaper
from finetooth_jinja.template import TemplateRefused

THINK = ("<think>", "</think>")
MARK = "PLACE{}OFREASONING"


def check_nothing_omitted(
    conversation: Conversation, text: str, shaper: Shaper, encoder: Encoder, *, prompt: bool = False
) -> None:
    """Templates leave out without a word what they have no markup for.

    Args:
        text: what the template made of it.
        prompt: with the prompt for an answer.

    Raises:
        DataError: tools or calls make no difference to the text, or spell a control token, which would become one.
    """
    messages, tools = conversation.messages, conversation.tools

    def without(changed: Sequence[Message], offered: Sequence[Mapping[str, Any]]) -> str:
        try:
            return str(shaper.render(changed, offered, prompt=prompt).text)
        except TemplateRefused:
            return ""

    action = "remove them from the rows, or set data.renderer to one that writes tools"
    if tools and without(messages, ()) == text:
        raise DataError("tools", "the chat template leaves the tools out", action=action)
    for i, message in enumerate(messages):
        for fewer in {0, max(len(message.tool_calls) - 1, 0)} if message.tool_calls else ():
            others = [*messages[:i], replace(message, tool_calls=message.tool_calls[:fewer]), *messages[i + 1 :]]
            if without(others, tools) == text:
                what = f"all but {fewer} of its calls out" if fewer else "its calls out"
                raise DataError(f"messages[{i}]", f"the chat template leaves {what}", action=action)
    texts: list[tuple[str, Any]] = [("tools", tools)]
    texts += [(f"messages[{i}]", message.tool_calls) for i, message in enumerate(messages)]
    texts += [(f"messages[{i}]", message.reasoning) for i, message in enumerate(messages)]
    for where, value in texts:
        if not value:
            continue
        spelled = encoder.spells_special(value if isinstance(value, str) else " ".join(_texts(value)))
        if spelled:
            raise DataError(
                where,
                f"it spells the special token {spelled!r} outside of a content, where it cannot stay plain",
                action="remove the row, or set data.renderer to one made for the model's family",
            )


def remarks(conversation: Conversation, shaper: Shaper) -> tuple[str, ...]:
    """Whether the template leaves reasoning out, as many do with that of earlier turns; it is rendered once more
    with marks in the place of all reasoning, and those that are not there tell.

    Raises:
        DataError: that of the last answer is not there, so the model would learn to answer without.
    """
    messages, marks = list(conversation.messages), dict[str, int]()
    for i, message in enumerate(messages):
        if message.role == "assistant":
            messages[i] = _with_marks(message, i, marks)
    if not marks:
        return ()
    try:
        text = shaper.render(messages, conversation.tools).text
    except TemplateRefused:
        text = ""  # unknown, so nothing is promised
    lost = [i for mark, i in marks.items() if mark not in text]
    last = max(i for i, message in enumerate(messages) if message.role == "assistant")
    if last in lost:
        raise DataError(
            f"messages[{last}]",
            "the chat template leaves its reasoning out",
            action="remove the reasoning, or set data.renderer to one that writes it",
        )
    return ("reasoning of earlier answers is left out, as the chat template does",) if lost else ()


def _with_marks(message: Message, i: int, marks: dict[str, int]) -> Message:
    """The message with marks in place of its reasoning, be it in its own field or in the content before a `</think>`.

    Args:
        marks: takes them, with the index of the message.
    """

    def mark() -> str:
        marks[name := MARK.format(len(marks))] = i
        return name

    if message.reasoning.strip():
        return replace(message, reasoning=mark())
    before, end, answer = message.content.rpartition(THINK[1])
    if not end or message.media:
        return message
    pieces = re.split(f"({THINK[0]}|{THINK[1]})", before)
    marked = [mark() if piece.strip() and piece not in THINK else piece for piece in pieces]
    return replace(message, content="".join(marked) + end + answer)


def _texts(value: Any) -> Iterator[str]:
    """Every text in tools or calls."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (str(key), *_texts(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
