"""The format `text`: one document a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from finetooth_hooks import Row, Text
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import LeftOut

from finetooth_formats import columns
from finetooth_formats.aliases import AliasedOptions
from finetooth_formats.unusable import Policy, left_out


class TextOptions(AliasedOptions):
    """Options of `text`."""

    aliases: ClassVar[Mapping[str, str]] = {"field": "column", "text_column": "column"}

    column: str = "text"
    """Column with the document."""
    unusable: Policy = "drop"
    """What happens to an empty text: `drop` leaves it out and counts it, `raise` is an error."""


def build(options: TextOptions, context: Context) -> TextFormat:
    options.tell(context)
    return TextFormat(options)


class TextFormat:
    """Rows with one column of text."""

    def __init__(self, options: TextOptions) -> None:
        self._options, self._column = options, options.column

    def detect(self, values: Mapping[str, Any]) -> str | None:
        is_text = isinstance(columns.value(values, self._column), str) and columns.shape(values) in (
            "",
            f"text ({self._column})",
        )
        return f"has a column {self._column!r}" if is_text else None

    def read(self, row: Row) -> Text | LeftOut:
        """Reads the text of a row.

        Raises:
            DataError: the column is missing, no text, or, with `unusable: raise`, empty.
        """
        text = columns.text(row, self._column, "text", empty=True)
        return Text(text) if text else left_out(row, f"{self._column} is empty", self._options)
