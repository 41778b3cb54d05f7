"""A conversation as a training row, and the tools that a conversation offers, read from a file."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.data.examples import Message
from finetooth_hooks.errors import UserError


@dataclass(frozen=True)
class AppendedRow:
    """The row that a conversation added to a file.

    Attributes:
        messages: of the row that was written; 0: none was.
        blank: answers that say nothing, left out with what they answer, since they would train an answer that ends at
            once and no recipe reads such a row.
    """

    messages: int
    blank: int

    def told(self, file: Path | str) -> str:
        """One line to show."""
        added = f"{self.messages} messages added to {file}" if self.messages else f"nothing added to {file}"
        answers = "answer left out with its question" if self.blank == 1 else "answers left out with questions"
        left = f"; {self.blank} blank {answers}"
        return f"({added}{left if self.blank else ''})"


def append_row(file: Path, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> AppendedRow:
    """Add a conversation to a file of JSON lines, as the format of conversations reads it.

    Raises:
        UserError: nothing was answered yet, or the file cannot be written.
    """
    if not any(message.role == "assistant" for message in messages):
        raise UserError("the conversation has no answer yet to keep", action="say something first")
    answered = without_blank_answers(messages)
    blank = sum(map(is_blank_answer, messages))
    if not any(message.role == "assistant" for message in answered):
        return AppendedRow(0, blank)
    row = {"messages": [as_json(message) for message in answered], **({"tools": list(tools)} if tools else {})}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}", action="name another file") from error
    return AppendedRow(len(answered), blank)


def is_blank_answer(message: Message) -> bool:
    """Whether an answer says, thinks and calls nothing."""
    content = message.content.strip() or message.reasoning.strip() or message.tool_calls
    return message.role == "assistant" and not content


def without_blank_answers(messages: Sequence[Message]) -> list[Message]:
    """The conversation without its blank answers and the questions right before them."""
    talk: list[Message] = []
    for message in messages:
        if not is_blank_answer(message):
            talk.append(message)
        elif talk and talk[-1].role == "user":
            talk.pop()
    return talk


def as_json(message: Message) -> dict[str, Any]:
    """A message with what it holds, and nothing that is empty."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.media:  # embedded, since a row names no files outside of its folder
        fields["content"] = [
            *(
                {"type": placed.medium.kind, "base64": b64encode(placed.medium.read()).decode()}
                for placed in message.media
            ),
            {"type": "text", "text": message.content},
        ]
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [dict(call) for call in message.tool_calls]
    return fields


def read_tools(file: Path) -> tuple[Mapping[str, Any], ...]:
    """Tools in OpenAI's shape, a JSON list.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        tools = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--tools: {file}: {error.strerror}", action="check the path") from error
    except ValueError as error:
        raise UserError(f"--tools: {file} is not JSON: {error}", action="write a list of tools") from error
    named = isinstance(tools, list) and all(
        isinstance(tool, dict) and isinstance(tool.get("function"), dict) and tool["function"].get("name")
        for tool in tools
    )
    if not named or not tools:
        raise UserError(
            f"--tools: {file} holds no list of tools",
            action='write [{"type": "function", "function": {"name": ..., "parameters": {...}}}, ...]',
        )
    return tuple(tools)
