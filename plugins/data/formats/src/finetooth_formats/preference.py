"""The format `preference`: a preferred and a rejected answer to one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from finetooth_hooks import DataError, Message, Row
from finetooth_hooks.context import Context
from finetooth_hooks.examples import Pair

from finetooth_formats import columns, ranked
from finetooth_formats.message_options import MessageOptions
from finetooth_formats.messages import MessageReader
from finetooth_formats.sides import Messages, SideReader, common, number

PROMPTS = ("prompt", "question", "instruction", "input", "messages")
"""Columns that are found by themselves, in this order."""


class PreferenceOptions(MessageOptions):
    """Options of `preference`."""

    aliases: ClassVar[Mapping[str, str]] = {
        **MessageOptions.aliases,
        "field_messages": "prompt",
        "field_prompt": "prompt",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
        "field_system": "system_column",
        "field_tools": "tools",
    }

    prompt: str = ""
    """The column with the prompt; empty finds `prompt`, `question`, `instruction`, `input` or `messages`. Where a row
    has none, the prompt is what both answers begin with, message by message."""
    chosen: str = "chosen"
    """The column with the preferred answer: text, a message, messages, or a transcript of turns that begin with
    `Human:` and `Assistant:` after an empty line."""
    rejected: str = "rejected"
    """The column with the other one."""
    margin: str = "margin"
    """The column that says by how much the first is better; may be missing."""
    responses: str = "responses"
    """In a row without `chosen` and `rejected`, the column with several answers, of which the best and the worst are
    the pair; the margin is how far their numbers lie apart."""
    scores: str = "scores"
    """The column with a number for each of `responses`, higher is better."""
    ranks: str = "ranks"
    """The column with a number for each of `responses`, lower is better; read where there are no scores."""
    system_column: str = "system"
    """The column with a system message; may be missing."""
    tools: str = "tools"
    """The column with tool schemas; may be missing."""


def build(options: PreferenceOptions, context: Context) -> Preference:
    options.tell(context)
    reader = MessageReader(**options.about_messages(), note=context.note, format_="preference")
    return Preference(options, reader)


class Preference:
    """Rows with two answers, or with several that were judged."""

    def __init__(self, options: PreferenceOptions, reader: MessageReader) -> None:
        self._options, self._reader = options, reader
        self._sides = SideReader(reader, "preference")
        self._prompts = (options.prompt,) if options.prompt else PROMPTS

    def detect(self, values: Mapping[str, Any]) -> str | None:
        chosen, rejected = self._options.chosen, self._options.rejected
        if columns.present(values, chosen, rejected):
            prompt = "" if self._prompt(values) else "; the prompt is what both begin with"
            return f"has the columns {chosen!r} and {rejected!r}{prompt}"
        judged = self._judged(values)
        if judged is None or not self._prompt(values):
            return None
        return f"has {self._options.responses!r} with {judged[0]!r}: the best and the worst of a row make a pair"

    def read(self, row: Row) -> Pair:
        """
        Raises:
            DataError: a column is missing or wrong, or the answers have no prompt in common.
        """
        given = self._options
        margin = number(row, given.margin)
        judged = self._judged(row.values)
        if judged is not None and not columns.present(row.values, given.chosen, given.rejected):
            chosen, rejected, apart = ranked.best_and_worst(row, given.responses, *judged, self._sides)
            margin = apart if margin is None else margin
        else:
            chosen = self._sides.messages(row, given.chosen, "assistant")
            rejected = self._sides.messages(row, given.rejected, "assistant")
        prompt, chosen, rejected = self._split(row, chosen, rejected)
        tools = self._reader.tools(row.id, columns.value(row.values, given.tools))
        return Pair(self._with_system(row, prompt), chosen, rejected, margin, tools)

    def _split(self, row: Row, chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
        """The prompt, and the answers without it."""
        column = self._prompt(row.values)
        if column:
            prompt = self._sides.messages(row, column, "user")
            return prompt, _after(prompt, chosen), _after(prompt, rejected)
        shared = common(chosen, rejected)
        if not shared:
            raise DataError(
                row.id,
                f"{self._options.chosen} and {self._options.rejected} have no prompt in common",
                action=f"add a column {self._prompts[0]!r}, or remove the row",
            )
        return chosen[:shared], chosen[shared:], rejected[shared:]

    def _prompt(self, values: Mapping[str, Any]) -> str:
        return next((name for name in self._prompts if columns.present(values, name)), "")

    def _judged(self, values: Mapping[str, Any]) -> tuple[str, ranked.Order] | None:
        """The column that judges several answers, and which of its numbers are better."""
        given = self._options
        orders: tuple[tuple[str, ranked.Order], ...] = ((given.scores, "high"), (given.ranks, "low"))
        return next((found for found in orders if ranked.is_ranked(values, given.responses, found[0])), None)

    def _with_system(self, row: Row, prompt: Messages) -> Messages:
        column = self._options.system_column
        own = columns.value(row.values, column) if column else None
        system = "" if own is None else self._reader.system(row.id, column, own)
        return (Message("system", system), *prompt) if system and prompt[0].role != "system" else prompt


def _after(prompt: Messages, answer: Messages) -> Messages:
    """The answer without the prompt, where it repeats it."""
    begins = len(answer) > len(prompt) and answer[: len(prompt)] == prompt
    return answer[len(prompt) :] if begins else answer
