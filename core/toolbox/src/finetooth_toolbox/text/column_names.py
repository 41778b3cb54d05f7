"""Checks names of a table's columns: they must differ, and requested columns must exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetooth_hooks.errors import DataError


def repeated(names: Iterable[str]) -> str | None:
    """The first repeated name; None if all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def check_columns(names: Sequence[str], where: str, action: str = "rename one") -> None:
    """Refuse columns with equal names, of which one would hide another.

    Args:
        where: the file and line that name them.

    Raises:
        DataError: two columns have the same name.
    """
    twice = repeated(names)
    if twice is not None:
        raise DataError(where, f"two columns are named {twice!r}", action=action)


def column_of(
    columns: Mapping[str, Sequence[Any]], name: str, reward: str, action: str, holds: str = ""
) -> Sequence[Any]:
    """The values of a column that a reward reads.

    Args:
        action: what to do if no column has the name.
        holds: its expected content, ` with tests`.

    Raises:
        DataError: no column has this name.
    """
    if name not in columns:
        there = ", ".join(sorted(columns)) or "none"
        raise DataError(f"reward {reward}", f"no column {name!r}{holds}; there are: {there}", action=action)
    return columns[name]
