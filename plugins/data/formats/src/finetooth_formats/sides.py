"""Prompts and answers as rows have them: texts, lists of messages, or transcripts in one text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from finetooth_hooks import DataError, Message, Row

from finetooth_formats import columns
from finetooth_formats.columns import kind
from finetooth_formats.media import RowMedia
from finetooth_formats.messages import MessageReader

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"\n\n(Human|Assistant):")
"""How a turn begins in transcripts of the hh-rlhf kind."""

TRUTHS = {"true": True, "false": False}
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

Messages = tuple[Message, ...]


class SideReader:
    """Reads columns as messages: a list of them, a text as one of a role, or a transcript.

    Args:
        format_: the format's name, for errors.
        input_column: the column that is appended to a prompt of text, empty for none; and the separator.
    """

    def __init__(self, reader: MessageReader, format_: str, input_column: tuple[str, str] = ("", "")) -> None:
        self._reader, self._format, self._input = reader, format_, input_column

    def messages(self, row: Row, column: str, role: str, media: RowMedia | None = None) -> Messages:
        """The column's messages; a text is one message of `role`.

        Args:
            media: of the row; without them a message may have none.

        Raises:
            DataError: the column is missing, null, or neither.
        """
        value, (input_, separator) = self._value(row, column), self._input
        if isinstance(value, str) and (input_text := columns.optional_text(row, input_, self._format)):
            value = f"{value}{separator}{input_text}"
        return self.answer(row, column, value, role, media)

    def answer(
        self, row: Row, path: str, value: Any, role: str = "assistant", media: RowMedia | None = None
    ) -> Messages:
        """The messages of a value in any column.

        Args:
            path: of the value, for errors.
            media: of the row; without them a message may have none.

        Raises:
            DataError: it is neither text nor messages.
        """
        if isinstance(value, str):
            if problem := columns.unspeakable(value):
                raise DataError(row.id, f"{path} {problem}", action="write the whole character, or remove the row")
            if media is not None and media.present and not transcript(value):
                return (self._reader.text_message(row.id, path, role, value, media),)
            return transcript(value) or (Message(role, value),)
        if isinstance(value, Mapping):
            return (self._reader.one(row.id, path, value, media),)
        if not isinstance(value, list | tuple):
            raise DataError(
                row.id, f"{path} is {kind(value)}, neither text nor a list of messages", action="fix or remove the row"
            )
        return self._reader.read(row.id, path, value, media)

    def answer_of(self, row: Row, path: str, value: Any, media: RowMedia) -> Messages:
        """As `answer`, of a row whose prompt was read. An answer that repeats the prompt places those of the
        column from the first one on, another continues where the prompt stopped.

        Raises:
            DataError: it is neither text nor messages, or an image or sound cannot be used.
        """
        whole = media.reading(from_first=True)
        messages = self.answer(row, path, value, media=whole)
        if messages and messages[0].role == "assistant" and whole.begun:
            return self.answer(row, path, value, media=media.reading(from_first=False))
        return messages

    def with_system(self, row: Row, column: str, prompt: Messages) -> Messages:
        """The prompt after the system message of a column, if the row has one and the prompt has none.

        Args:
            column: may be empty, or missing in the row.

        Raises:
            DataError: it holds no text.
        """
        own = columns.value(row.values, column) if column else None
        system = "" if own is None else self._reader.system(row.id, column, own)
        return (Message("system", system), *prompt) if system and prompt[0].role != "system" else prompt

    def text(self, row: Row, column: str) -> str:
        """The column's text, which may be empty.

        Raises:
            DataError: it is missing or no text.
        """
        return columns.text(row, column, self._format, empty=True)

    def is_text(self, row: Row, column: str) -> bool:
        """Whether the column is plain text: no list, and no transcript."""
        value = columns.value(row.values, column)
        return isinstance(value, str) and not transcript(value)

    def _value(self, row: Row, column: str) -> Any:
        value = columns.value(row.values, column)
        if value is None:
            raise columns.missing(row, column, self._format)
        return value


def transcript(text: str) -> Messages:
    """The turns of a text of the kind `\\n\\nHuman: ...\\n\\nAssistant: ...`; none for another text."""
    if not TURN.match(text):
        return ()
    parts = TURN.split(text)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Message(SPEAKERS[speaker], turn.strip()) for speaker, turn in pairs)


def common(first: Messages, second: Messages) -> int:
    """Number of common messages at the beginning of two conversations; each keeps at least one other message."""
    most = min(len(first), len(second)) - 1
    return next((i for i in range(max(most, 0)) if first[i] != second[i]), max(most, 0))


def common_text(first: str, second: str) -> int:
    """How many characters two texts begin with in common, up to the last blank among them: no word is cut, and each
    keeps something of its own. 0 if they share no blank."""
    most = min(len(first), len(second))
    end = next((i for i in range(most) if first[i] != second[i]), most)
    return next((i for i in range(min(end, most - 1), 0, -1) if first[i].isspace() and second[i].isspace()), 0)


def spelled(value: Any) -> Any:
    """A number, or true or false, that stands there as text, as everything in a CSV file does; blank text is null. All
    else as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in TRUTHS:
        return TRUTHS[text.lower()]
    if not text:
        return None
    return float(text) if NUMBER.fullmatch(text) else value


def number(row: Row, column: str) -> float | None:
    """A finite number, or None where the column is missing or null. It may be spelled in text.

    Raises:
        DataError: something else.
    """
    value = spelled(columns.value(row.values, column))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(row.id, f"{column} is {kind(value)}, not a number", action=f"write {column} as a number")
    return finite(row, column, value)


def finite(row: Row, path: str, value: int | float) -> float:
    """The number as a float.

    Raises:
        DataError: it is not finite, or larger than any float.
    """
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        shown = str(value) if isinstance(value, float) else "a number of more than 300 digits"
        raise DataError(row.id, f"{path} is {shown}, not a finite number", action="fix or remove the row")
    return number
