"""The format `preference`: a preferred and a rejected answer to one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks import DataError, Options, Row
from finetooth_hooks.context import Context
from finetooth_hooks.examples import Pair

from finetooth_formats import columns
from finetooth_formats.messages import MessageReader
from finetooth_formats.sides import Messages, SideReader, common, number


class PreferenceOptions(Options):
    """Options of `preference`."""

    prompt: str = "prompt"
    """The column with the prompt. Where a row has none, the prompt is what both answers begin with, message by
    message."""
    chosen: str = "chosen"
    """The column with the preferred answer: text, messages, or a transcript of turns that begin with `Human:` and
    `Assistant:` after an empty line."""
    rejected: str = "rejected"
    """The column with the other one."""
    margin: str = "margin"
    """The column that says by how much the first is better; may be missing."""
    tools: str = "tools"
    """The column with tool schemas; may be missing."""


def build(options: PreferenceOptions, context: Context) -> Preference:
    return Preference(options, MessageReader(note=context.note))


class Preference:
    """Rows with two answers."""

    def __init__(self, options: PreferenceOptions, reader: MessageReader) -> None:
        self._options, self._reader = options, reader
        self._sides = SideReader(reader, "preference")

    def detect(self, values: Mapping[str, Any]) -> str | None:
        chosen, rejected = self._options.chosen, self._options.rejected
        if not columns.present(values, chosen, rejected):
            return None
        prompt = "" if columns.present(values, self._options.prompt) else "; the prompt is what both begin with"
        return f"has the columns {chosen!r} and {rejected!r}{prompt}"

    def read(self, row: Row) -> Pair:
        """
        Raises:
            DataError: a column is missing or wrong, or the answers have no prompt in common.
        """
        given = self._options
        chosen = self._sides.messages(row, given.chosen, "assistant")
        rejected = self._sides.messages(row, given.rejected, "assistant")
        if columns.present(row.values, given.prompt):
            prompt = self._sides.messages(row, given.prompt, "user")
            chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
        else:
            shared = common(chosen, rejected)
            if not shared:
                raise DataError(
                    row.id,
                    f"{given.chosen} and {given.rejected} have no prompt in common",
                    action=f"add a column {given.prompt!r}, or remove the row",
                )
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        tools = self._reader.tools(row.id, row.values.get(given.tools))
        return Pair(prompt, chosen, rejected, number(row, given.margin), tools)


def _after(prompt: Messages, answer: Messages) -> Messages:
    """The answer without the prompt, where it repeats it."""
    begins = len(answer) > len(prompt) and answer[: len(prompt)] == prompt
    return answer[len(prompt) :] if begins else answer
