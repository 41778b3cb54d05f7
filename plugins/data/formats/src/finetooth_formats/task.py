"""The format `task`: a prompt that the model answers while it learns, and whatever else rewards need to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from finetooth_hooks import Row
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Task

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
    """The column with the prompt, text or messages, `a.b` for `b` inside `a`; all other columns go to the rewards."""
    tools: str = "tools"
    """The column with tool schemas; may be missing."""


def build(options: TaskOptions, context: Context) -> TaskFormat:
    options.tell(context)
    reader = MessageReader(**options.about_messages(), note=context.note, format_="task")
    return TaskFormat(options, reader)


class TaskFormat:
    """Rows with a prompt."""

    def __init__(self, options: TaskOptions, reader: MessageReader) -> None:
        self._options, self._reader = options, reader
        self._sides = SideReader(reader, "task")

    def detect(self, values: Mapping[str, Any]) -> str | None:
        name = self._options.prompt
        return f"has a column {name!r} and no answer to it" if columns.present(values, name) else None

    def read(self, row: Row) -> Task:
        """Reads a prompt; the other columns are kept for rewards and environments.

        Raises:
            DataError: the prompt is missing or wrong.
        """
        options = self._options
        media = RowMedia(row, options.media_columns)
        prompt = self._sides.messages(row, options.prompt, "user", media)
        media.finish()
        others = {name: value for name, value in row.values.items() if name not in (options.prompt, options.tools)}
        tools = self._reader.tools(row.id, columns.value(row.values, options.tools))
        return Task(prompt, others, tools, isinstance(columns.value(row.values, options.prompt), str))
