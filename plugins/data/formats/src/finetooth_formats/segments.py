"""The format `segments`: text in pieces that each say whether they train, without any markup.

The shape that axolotl calls `input_output`: `{"segments": [{"text": "...", "label": true}, ...]}`. Nothing is added
between the pieces or around them: special tokens that are wanted stand in the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks import DataError, Options, Row
from finetooth_hooks.data.examples import Segments

from finetooth_formats import columns
from finetooth_formats.columns import kind

FLAGS = ("label", "train")
"""Keys that mark whether a piece trains."""


class SegmentsOptions(Options):
    """Options of `segments`."""

    column: str = "segments"
    """Column with the list of segments."""


class SegmentsFormat:
    """Rows with a list of pieces."""

    def __init__(self, options: SegmentsOptions) -> None:
        self._column = options.column

    def detect(self, values: Mapping[str, Any]) -> str | None:
        pieces = columns.value(values, self._column)
        first = pieces[0] if isinstance(pieces, list | tuple) and pieces else None
        if not isinstance(first, Mapping) or "text" not in first or not any(flag in first for flag in FLAGS):
            return None
        return f"has a column {self._column!r} of pieces that say whether they train"

    def read(self, row: Row) -> Segments:
        """Reads pieces of text, each with its label.

        Raises:
            DataError: the column is missing, or a piece is wrong; names every path.
        """
        pieces = columns.value(row.values, self._column)
        if pieces is None:
            raise columns.missing(row, self._column, "segments")
        if not isinstance(pieces, list | tuple) or not pieces:
            problem = "empty" if isinstance(pieces, list | tuple) else f"{kind(pieces)}, not a list of pieces"
            raise DataError(
                row.id, f"{self._column} is {problem}", action="write a list of objects with text and label"
            )
        problems: list[str] = []
        read = [self._piece(f"{self._column}[{i}]", piece, problems) for i, piece in enumerate(pieces)]
        if problems:
            raise DataError(row.id, "; ".join(problems), action="write each piece as {text: ..., label: true|false}")
        return Segments(tuple(piece for piece in read if piece is not None))

    def _piece(self, path: str, piece: Any, problems: list[str]) -> tuple[str, bool] | None:
        if not isinstance(piece, Mapping):
            problems.append(f"{path} is {kind(piece)}, not an object")
            return None
        text = piece.get("text")
        if not isinstance(text, str):
            problems.append(f"{path}.text is {'missing' if 'text' not in piece else f'{kind(text)}, not text'}")
        elif problem := columns.unspeakable(text):
            problems.append(f"{path}.text {problem}")
        flag = next((piece[name] for name in FLAGS if piece.get(name) is not None), None)
        if not isinstance(flag, bool):
            problems.append(f"{path}.label is {'missing' if flag is None else f'{kind(flag)}, not true or false'}")
        return (text, flag) if isinstance(text, str) and isinstance(flag, bool) else None
