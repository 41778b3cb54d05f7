"""The format `text`: one document a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from finetooth_hooks import Row, Text
from finetooth_hooks.context import Context

from finetooth_formats import columns
from finetooth_formats.aliases import AliasedOptions


class TextOptions(AliasedOptions):
    """Options of `text`."""

    aliases: ClassVar[Mapping[str, str]] = {"field": "column", "text_column": "column"}

    column: str = "text"
    """The column that holds the document."""


def build(options: TextOptions, context: Context) -> TextFormat:
    options.tell(context)
    return TextFormat(options.column)


class TextFormat:
    """Rows with one column of text."""

    def __init__(self, column: str = "text") -> None:
        self._column = column

    def detect(self, values: Mapping[str, Any]) -> str | None:
        found = isinstance(columns.value(values, self._column), str) and columns.shape(values) in (
            "",
            f"text ({self._column})",
        )
        return f"has a column {self._column!r}" if found else None

    def read(self, row: Row) -> Text:
        """
        Raises:
            DataError: the column is missing, no text, or empty.
        """
        return Text(columns.text(row, self._column, "text"))
