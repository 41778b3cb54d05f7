"""Nulls that Arrow puts into structs: every struct of a column has the fields of all, null where a row has none.

A tool call kept as a struct therefore holds the other tools' arguments, and a schema the other schemas' keys. A null in
a struct cannot be told from one that an author wrote, so it is read as absent; JSON keeps what it says.
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
    """What is said once of a file or a data set.

    Args:
        name: of the file or data set.
        column: the first that is padded.
    """
    return (
        f"{name}: nulls inside column {column!r} are read as absent: its structs all have the same fields, null where "
        "a row has none (a null that is meant needs JSON lines, or the column as JSON text)"
    )
