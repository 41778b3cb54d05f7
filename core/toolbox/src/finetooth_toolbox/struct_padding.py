"""Removes nulls that Arrow adds to structs: every struct of a column has the fields of all, with null for missing ones.

So a tool call as a struct has the other tools' arguments, and a schema the other schemas' keys. Such a null looks like
an author's null, so every null in a struct is read as absent; JSON keeps its nulls.
"""

from __future__ import annotations

from typing import Any


def without_padding(value: Any) -> Any:
    """A value of an Arrow column without the keys of mappings that are None, at every depth; items of lists stay."""
    if isinstance(value, dict):
        return {key: without_padding(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return type(value)(map(without_padding, value))
    return value


def padding_note(name: str, column: str) -> str:
    """The note about a file or a data set, added once.

    Args:
        name: of the file or data set.
        column: the first padded column.
    """
    return (
        f"{name}: nulls inside column {column!r} are read as absent: its structs all have the same fields, null where "
        "a row has none (a null that is meant needs JSON lines, or the column as JSON text)"
    )
