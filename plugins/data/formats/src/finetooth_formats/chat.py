"""The format `chat`: conversations in the OpenAI shape (`messages`) or the ShareGPT shape (`conversations`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from finetooth_hooks import Conversation, Message, Row
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import ROLES

from finetooth_formats import columns
from finetooth_formats.aliases import roles_by_name
from finetooth_formats.media import RowMedia
from finetooth_formats.message_options import MessageOptions, Role
from finetooth_formats.messages import SHAREGPT_ROLES, MessageReader

COLUMNS = ("messages", "conversations", "conversation")
"""Columns that are found by themselves, in this order."""


class ChatOptions(MessageOptions):
    """Options of `chat`."""

    aliases: ClassVar[Mapping[str, str]] = {
        **MessageOptions.aliases,
        "field_messages": "column",
        "field_tools": "tools",
        "field_system": "system_column",
        "roles_to_train": "train_roles",
        "message_field_training": "train_field",
        "message_field_training_detail": "ranges_field",
    }

    column: str = ""
    """Column with the list of messages, `a.b` for `b` inside `a`; empty takes `messages`, `conversations` or
    `conversation`."""
    tools: str = "tools"
    """Column with tool schemas; may be missing."""
    system: str = ""
    """System message for every conversation that begins without one; empty for none. The row's own (see
    `system_column`) takes precedence."""
    system_column: str = "system"
    """Column with a system message; may be missing."""
    train_roles: list[Role] | None = None
    """Roles whose messages train, instead of `method.train_on`; a message's own flag takes precedence."""
    train_field: str = "train"
    """Key of a message that says whether it trains, true or false; OpenAI's `weight` (0 or 1) is read as well."""
    ranges_field: str = ""
    """Key of a message that says which of its characters train, `[{begin_offset: 0, end_offset: 4, train: true}]`, both
    ends included. The message's other characters do not train. Empty: not read."""
    split_thinking: bool = False
    """Whether to move a `<think>...</think>` at the beginning of an assistant's content into its reasoning, which the
    renderer writes in the family's way. Line breaks around either are dropped."""

    @classmethod
    def _rename(cls, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
        inputs = values.get("train_on_inputs")
        if isinstance(inputs, bool):
            del values["train_on_inputs"]
            if inputs:
                values["train_roles"] = list(ROLES)
            yield "train_on_inputs", "train_roles: all of them" if inputs else "the default"
        for theirs, ours in super()._rename(values):
            if theirs == "roles_to_train" and isinstance(values[ours], list):  # may be named as in the rows
                named = {**SHAREGPT_ROLES, **_mapping(roles_by_name(values.get("roles")))}
                values[ours] = [named.get(name, name) if isinstance(name, str) else name for name in values[ours]]
            yield theirs, ours


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def build(options: ChatOptions, context: Context) -> Chat:
    options.tell(context)
    reader = MessageReader(
        **options.about_messages(),
        note=context.note,
        train_roles=options.train_roles,
        train_field=options.train_field,
        ranges_field=options.ranges_field,
        split_thinking=options.split_thinking,
    )
    return Chat(options, reader)


class Chat:
    """Rows with a list of messages."""

    def __init__(self, options: ChatOptions, reader: MessageReader) -> None:
        self._options, self._reader = options, reader
        self._columns = (options.column,) if options.column else COLUMNS

    def detect(self, values: Mapping[str, Any]) -> str | None:
        column = self._column(values)
        return None if column is None else f"has a column {column!r}"

    def read(self, row: Row) -> Conversation:
        """Reads a conversation from a row's list of messages.

        Raises:
            DataError: the column is missing or a message is wrong; names every path.
        """
        column = self._column(row.values)
        if column is None:
            raise columns.missing(row, self._columns[0], "chat")
        media = RowMedia(row, self._options.media_columns)
        messages = self._reader.read(row.id, column, columns.value(row.values, column), media)
        media.finish()
        messages = self._with_system(row, messages)
        return Conversation(messages, self._reader.tools(row.id, columns.value(row.values, self._options.tools)))

    def _column(self, values: Mapping[str, Any]) -> str | None:
        return next((name for name in self._columns if columns.present(values, name)), None)

    def _with_system(self, row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        column = self._options.system_column
        own = columns.value(row.values, column) if column else None
        system = "" if own is None else self._reader.system(row.id, column, own)
        if messages[0].role != "system":
            system = system or self._options.system
            return (self._system(system), *messages) if system else messages
        if system:
            self._reader.once(
                f"column {column}",
                f"column {column!r} is not used in {row.id} and maybe other rows, whose messages begin with a system "
                "message",
            )
        return messages

    def _system(self, text: str) -> Message:
        roles = self._options.train_roles
        return Message("system", text, train=None if roles is None else "system" in roles)
