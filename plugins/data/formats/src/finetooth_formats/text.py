"""The format `text`: one document a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks import Options, Row, Text
from finetooth_hooks.context import Context

from finetooth_formats import columns


class TextOptions(Options):
    """Options of `text`."""

    column: str = "text"
    """The column that holds the document."""


def build(options: TextOptions, context: Context) -> TextFormat:
    return TextFormat(options.column)


class TextFormat:
    """Rows with one column of text."""

    def __init__(self, column: str = "text") -> None:
        self._column = column

    def detect(self, values: Mapping[str, Any]) -> str | None:
        found = isinstance(values.get(self._column), str) and columns.shape(values) in ("", f"text ({self._column})")
        return f"has a column {self._column!r}" if found else None

    def read(self, row: Row) -> Text:
        """
        Raises:
            DataError: the column is missing, no text, or empty.
        """
        return Text(columns.text(row, self._column, "text"))
