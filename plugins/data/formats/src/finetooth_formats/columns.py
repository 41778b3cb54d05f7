"""Reads columns of a row, with clear errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import DataError, Row
from finetooth_toolbox.text.nearest import nearest

SHAPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("preference", ("messages", "rejected_response")),
    ("preference", ("query", "response", "rejected_response")),
    ("chat", ("messages",)),
    ("chat", ("conversations",)),
    ("segments", ("segments",)),
    ("preference", ("chosen", "rejected")),
    ("stepwise", ("completions", "labels")),
    ("labelled", ("prompt", "completion", "label")),
    ("instruction", ("instruction", "output")),
    ("instruction", ("instruction", "response")),
    ("prompt_completion", ("prompt", "completion")),
    ("prompt_completion", ("prompt", "response")),
    ("prompt_completion", ("question", "answer")),
    ("prompt_completion", ("problem", "solution")),
    ("prompt_completion", ("query", "response")),
    ("prompt_completion", ("input", "output")),
    ("text", ("text",)),
)
"""Common shapes of rows: their names, and the columns that identify them."""

NAMES = 20
"""So many columns of a row are named."""

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


def value(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column; None if it is missing; `a.b` is the column of that name, or else `b` inside `a`."""
    if column in values or "." not in column:
        return values.get(column)
    inner: Any = values
    for key in column.split("."):
        if not isinstance(inner, Mapping):
            return None
        inner = inner.get(key)
    return inner


def present(values: Mapping[str, Any], *columns: str) -> bool:
    """The row has all the columns, none of them null (readers of tables fill absent columns with null)."""
    return all(value(values, column) is not None for column in columns)


def unspeakable(text: str) -> str:
    """What is wrong with a text that no tokenizer can read: JSON can escape half of a character (`\\ud83d`); empty if
    nothing is."""
    if text.isascii():
        return ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"is not Unicode text: half of a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start}"
        )
    return ""


def kind(value: Any) -> str:
    """The type of a value in words."""
    return _TYPES.get(type(value), type(value).__name__)


SHOWN = 60
"""Characters of a value that a message shows."""


def shown(value: Any) -> str:
    """A value as a message shows it: short, on one line, printable anywhere; of a list or an object its type."""
    if isinstance(value, str):
        return repr(value) if len(value) <= SHOWN else f"{value[:SHOWN]!r}..."
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**SHOWN):
        return str(value)
    return kind(value)


def key(name: Any) -> str:
    """A key as a message shows it, without quotes where it is plain."""
    return name if isinstance(name, str) and name.isidentifier() and len(name) <= SHOWN else shown(name)


def shape(values: Mapping[str, Any]) -> str:
    """The shape of a row: `prompt_completion (prompt, completion)`; empty if unknown."""
    for name, columns in SHAPES:
        if present(values, *columns):
            return f"{name} ({', '.join(columns)})"
    return ""


def _partial_shape(values: Mapping[str, Any]) -> str:
    """The shape of which a row has at least half of the columns: `prompt_completion without 'completion'`."""
    shapes = []
    for name, names in SHAPES:
        absent = [column for column in names if not present(values, column)]
        if len(absent) * 2 <= len(names):
            shapes.append((len(absent) / len(names), f"{name} without {' and '.join(map(repr, absent))}"))
    return min(shapes, key=lambda shape: shape[0])[1] if shapes else ""


def missing(row: Row, column: str, format_: str) -> DataError:
    """The error for a missing column: names the row's shape, or the nearest column."""
    names = [name for name, value in row.values.items() if value is not None]
    if not names:
        return DataError(row.id, "the row is empty" if not row.values else "every column of the row is null")
    if column in row.values and row.values[column] is None:
        return DataError(row.id, f"{column} is null", action="remove the row or fill it in")
    near = nearest(column, [name for name in names if isinstance(name, str)])
    looks = shape(row.values) or _partial_shape(row.values)
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    problem = f"no column {column!r}; the row has {', '.join(map(shown, names[:NAMES]))}{more}"
    if near:
        return DataError(row.id, f"{problem}; is {shown(near)} meant?", action=f"rename it to {column!r}")
    if looks and not looks.startswith(f"{format_} "):
        return DataError(
            row.id,
            f"{problem}: it looks like {looks}, not like {format_}",
            action="keep rows of one shape in a file, or set data.format",
            shape=looks,
        )
    return DataError(row.id, problem, action="set data.format with the names of its columns, or fix the row")


def text(row: Row, column: str, format_: str, *, empty: bool = False, answer: bool = False) -> str:
    """The text in a column.

    Args:
        empty: empty text is fine.
        answer: blanks alone are nothing, too: they would train an answer that ends at once.

    Raises:
        DataError: the column is missing, null, no text, or empty.
    """
    content = value(row.values, column)
    if content is None:
        raise missing(row, column, format_)
    if not isinstance(content, str):
        raise DataError(row.id, f"{column} is {kind(content)}, not text", action=f"write {column} as a string")
    if not empty and not content:
        raise DataError(row.id, f"{column} is empty", action="remove the row or fill it in")
    if answer and not content.strip():
        raise DataError(row.id, f"{column} is nothing but blanks", action="remove the row or fill it in")
    if problem := unspeakable(content):
        raise DataError(row.id, f"{column} {problem}", action="write the whole character, or remove the row")
    return content


def optional_text(row: Row, column: str, format_: str) -> str:
    """The text in a column, empty if the row lacks it.

    Raises:
        DataError: it holds something else.
    """
    return text(row, column, format_, empty=True) if column and present(row.values, column) else ""


def first_pair(values: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The first pair of columns the row has."""
    return next((pair for pair in pairs if present(values, *pair)), None)
