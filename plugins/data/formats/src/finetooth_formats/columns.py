"""Reading columns of a row, and saying well what is wrong with one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import DataError, Row

SHAPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("chat", ("messages",)),
    ("chat", ("conversations",)),
    ("segments", ("segments",)),
    ("preference", ("chosen", "rejected")),
    ("stepwise", ("completions", "labels")),
    ("labelled", ("prompt", "completion", "label")),
    ("instruction", ("instruction", "output")),
    ("prompt_completion", ("prompt", "completion")),
    ("prompt_completion", ("question", "answer")),
    ("prompt_completion", ("problem", "solution")),
    ("prompt_completion", ("input", "output")),
    ("text", ("text",)),
)
"""Shapes of rows in the wild: what they are called, and the columns that tell."""

_TYPES: Mapping[type, str] = {
    bool: "true/false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    type(None): "null",
}


def present(values: Mapping[str, Any], *columns: str) -> bool:
    """The row has all the columns, none of them null (readers of tables fill absent columns with null)."""
    return all(values.get(column) is not None for column in columns)


def kind(value: Any) -> str:
    """The type of a value in words."""
    return _TYPES.get(type(value), type(value).__name__)


def shape(values: Mapping[str, Any]) -> str:
    """What a row looks like: `prompt_completion (prompt, completion)`; empty if like nothing known."""
    for name, columns in SHAPES:
        if present(values, *columns):
            return f"{name} ({', '.join(columns)})"
    return ""


def missing(row: Row, column: str, format_: str) -> DataError:
    """The error for a column that is not there: says what the row looks like instead, or the nearest name."""
    names = [name for name, value in row.values.items() if value is not None]
    if not names:
        return DataError(row.id, "the row is empty" if not row.values else "every column of the row is null")
    if row.values.get(column, "") is None:
        return DataError(row.id, f"{column} is null", action="remove the row or fill it in")
    near = difflib.get_close_matches(column, names, n=1, cutoff=0.6)
    looks = shape(row.values)
    problem = f"no column {column!r}; the row has {', '.join(map(repr, names))}"
    if near:
        return DataError(row.id, f"{problem}; is {near[0]!r} meant?", action=f"rename it to {column!r}")
    if looks and not looks.startswith(f"{format_} "):
        return DataError(
            row.id,
            f"{problem}: it looks like {looks}, not like {format_}",
            action="keep rows of one shape in a file, or set data.format",
        )
    return DataError(row.id, problem, action="set data.format with the names of its columns, or fix the row")


def text(row: Row, column: str, format_: str, *, empty: bool = False) -> str:
    """The text in a column.

    Args:
        empty: empty text is fine.

    Raises:
        DataError: the column is missing, null, no text, or empty.
    """
    if not present(row.values, column):
        raise missing(row, column, format_)
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(row.id, f"{column} is {kind(value)}, not text", action=f"write {column} as a string")
    if not empty and not value:
        raise DataError(row.id, f"{column} is empty", action="remove the row or fill it in")
    return value


def first_pair(values: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The first pair of columns the row has."""
    return next((pair for pair in pairs if present(values, *pair)), None)
