"""The format `task`: a prompt that the model answers during training, with columns for rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from finetooth_hooks import DataError, Message, Row
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Task
from pydantic import Field

from finetooth_formats import columns
from finetooth_formats.media import RowMedia
from finetooth_formats.message_options import MessageOptions
from finetooth_formats.messages import MessageReader
from finetooth_formats.sides import SideReader


class TaskOptions(MessageOptions):
    """Options of `task`."""

    aliases: ClassVar[Mapping[str, str]] = {
        **MessageOptions.aliases,
        "field_messages": "prompt",
        "field_tools": "tools",
    }

    prompt: str = "prompt"
    """Column with the prompt, text or messages, `a.b` for `b` inside `a`; all other columns go to the rewards."""
    tools: str = "tools"
    """Column with tool schemas; may be missing."""
    turns: Literal["all", "first", "last", "sequential"] | None = None
    """If the prompt is a whole conversation: which assistant turns the policy answers again. Each becomes a prompt, the
    messages before it, with the assistant's text as its reference answer. `sequential` makes a prompt of the first turn
    and keeps the following turns in the column `remaining_turns`, for `environment: conversation`: each turn then
    follows the policy's own earlier ones. null: the column holds a prompt without an answer."""
    answer: str = Field(default="answer", min_length=1)
    """With `turns`: the new column for the reference answer, for rewards and for `ebft`."""
    reasoning: str = ""
    """With `turns` other than `sequential`, the column that the reasoning of a reference answer gets, also of one that
    stands in its content between `<think>` and `</think>`; empty: a turn with reasoning is refused."""


def build(options: TaskOptions, context: Context) -> TaskFormat:
    options.tell(context)
    about = {**options.about_messages(), "split_thinking": bool(options.reasoning)}
    reader = MessageReader(**about, note=context.note, format_="task")
    return TaskFormat(options, reader)


class TaskFormat:
    """Rows with a prompt."""

    def __init__(self, options: TaskOptions, reader: MessageReader) -> None:
        self._options, self._reader = options, reader
        self._sides = SideReader(reader, "task")

    def detect(self, values: Mapping[str, Any]) -> str | None:
        name = self._options.prompt
        if self._options.turns:
            return None  # a conversation is taken apart only by name
        return f"has a column {name!r} and no answer to it" if columns.present(values, name) else None

    def read(self, row: Row) -> Task | list[Task]:
        """Reads a prompt; the other columns are kept for rewards and environments.

        Raises:
            DataError: the prompt is missing or wrong; with `turns`, the assistant says nothing, or more than text.
        """
        options = self._options
        media = RowMedia(row, options.media_columns)
        messages = self._sides.messages(row, options.prompt, "user", media)
        media.finish()
        others = {name: value for name, value in row.values.items() if name not in (options.prompt, options.tools)}
        tools = self._reader.tools(row.id, columns.value(row.values, options.tools))
        if not options.turns:
            return Task(messages, others, tools, isinstance(columns.value(row.values, options.prompt), str))
        for setting in ("answer", "reasoning"):
            if (column := getattr(options, setting)) in others:
                action = f"name another in data.format.{setting}"
                raise DataError(row.id, f"it has a column {column!r} already", action=action)
        places = [place for place, message in enumerate(messages) if message.role == "assistant" and place]
        if not places:
            raise DataError(
                row.id, f"no turn of the assistant follows a question in {options.prompt}", action="remove the row"
            )
        if options.turns == "sequential":
            return [self._sequential(row, messages, places, others, tools)]
        chosen = {"all": places, "first": places[:1], "last": places[-1:]}[options.turns]
        return [
            Task(messages[:place], {**others, **self._reference(row, place, messages[place])}, tools)
            for place in chosen
        ]

    def _reference(self, row: Row, place: int, message: Message) -> dict[str, str]:
        """Columns of a turn that is asked for again."""
        if not (column := self._options.reasoning):
            return {self._options.answer: self._text(row, place, message)}
        answer = self._text(row, place, replace(message, reasoning="", reasoning_weights=()))
        return {self._options.answer: answer, column: message.reasoning}

    def _sequential(
        self, row: Row, messages: tuple[Message, ...], places: Sequence[int], others: Mapping[str, Any], tools: Any
    ) -> Task:
        """The first turn as a prompt, and all that follows it up to the last turn as a column."""
        texts = {place: self._text(row, place, messages[place]) for place in places}
        later = range(places[0] + 1, places[-1] + 1)
        shown = [place for place in later if place not in texts and messages[place].media]
        if shown:
            raise DataError(
                row.id,
                f"{self._options.prompt}[{shown[0]}] holds more than text after the assistant's first turn",
                action="set data.format.turns to all, or remove the row",
            )
        remaining = [{"role": messages[i].role, "content": texts.get(i, messages[i].content)} for i in later]
        answer = {self._options.answer: texts[places[0]], "remaining_turns": remaining}
        return Task(messages[: places[0]], {**others, **answer}, tools)

    def _text(self, row: Row, place: int, message: Message) -> str:
        """The content of a turn."""
        beyond = [name for name in ("reasoning", "tool_calls", "media") if getattr(message, name)]
        if beyond or not message.content:
            what = f"has {beyond[0].replace('_', ' ')}" if beyond else "is empty"
            raise DataError(
                row.id,
                f"{self._options.prompt}[{place}] {what}, and a reference answer holds text only",
                action=("name a column for it in data.format.reasoning, " if beyond[:1] == ["reasoning"] else "")
                + "choose other turns in data.format.turns, or remove the row",
            )
        return message.content
