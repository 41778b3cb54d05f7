"""The format `chat`: conversations in the OpenAI shape (`messages`) or the ShareGPT shape (`conversations`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from finetooth_hooks import Conversation, Message, Options, Row
from finetooth_hooks.context import Context
from pydantic import Field

from finetooth_formats import columns
from finetooth_formats.images import RowImages
from finetooth_formats.messages import MessageReader

COLUMNS = ("messages", "conversations", "conversation")
"""Columns that are found by themselves, in this order."""


class ChatOptions(Options):
    """Options of `chat`."""

    column: str = ""
    """The column with the list of messages; empty finds `messages`, `conversations` or `conversation`."""
    tools: str = "tools"
    """The column with tool schemas; may be missing."""
    system: str = ""
    """A system message before every conversation that begins without one; empty for none. A column `system` of the
    row comes first."""
    images: str = ""
    """The column with images, taken in order by `<image>` in a text and by parts `{type: image}` without a source;
    empty finds `images` or `image`. Paths are relative to the folder of the data file."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(default_factory=dict)
    """Further names and the roles they stand for, `{human: user, gpt: assistant}`. ShareGPT's `from` needs none."""


def build(options: ChatOptions, context: Context) -> Chat:
    return Chat(options, MessageReader(options.roles, context.note))


class Chat:
    """Rows with a list of messages."""

    def __init__(self, options: ChatOptions, reader: MessageReader) -> None:
        self._options, self._reader = options, reader
        self._columns = (options.column,) if options.column else COLUMNS

    def detect(self, values: Mapping[str, Any]) -> str | None:
        column = self._column(values)
        return None if column is None else f"has a column {column!r}"

    def read(self, row: Row) -> Conversation:
        """
        Raises:
            DataError: the column is missing or a message is wrong; names every path.
        """
        column = self._column(row.values)
        if column is None:
            raise columns.missing(row, self._columns[0], "chat")
        images = RowImages(row, self._options.images)
        messages = self._reader.read(row.id, column, row.values[column], images)
        images.finish()
        system = self._system(row)
        if system and messages[0].role != "system":
            messages = (Message("system", system), *messages)
        return Conversation(messages, self._reader.tools(row.id, row.values.get(self._options.tools)))

    def _column(self, values: Mapping[str, Any]) -> str | None:
        return next((name for name in self._columns if columns.present(values, name)), None)

    def _system(self, row: Row) -> str:
        if columns.present(row.values, "system"):
            return columns.text(row, "system", "chat", empty=True) or self._options.system
        return self._options.system
