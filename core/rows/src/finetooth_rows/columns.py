"""Which columns of the rows their format looks up, so that none is lost without a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from finetooth_hooks.data.examples import Row

WATCHED = 20
"""So many rows with the same columns are watched: what is looked up hardly depends on more than which are there."""

Columns = dict[str, bool]
"""Columns that hold something, and whether they were looked up."""


class WatchedColumns(dict[str, Any]):
    """The columns of a row; remembers which were looked up, all of them when it is gone through or copied."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def _all(self) -> None:
        self.read.update(super().keys())

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def keys(self) -> Any:
        self._all()
        return super().keys()

    def values(self) -> Any:
        self._all()
        return super().values()

    def items(self) -> Any:
        self._all()
        return super().items()

    def copy(self) -> dict[str, Any]:
        self._all()
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other


@dataclass
class _Shape:
    """Rows with the same columns."""

    watched: int = 0
    read: set[str] = field(default_factory=set)


class ColumnWatch:
    """Watches what one format looks up in the rows it reads."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    @contextmanager
    def over(self, columns: Columns) -> Iterator[_Watching]:
        """Inside the `with` block, rows may be watched; in the end `columns` says what is known of those that were."""
        watching = _Watching(self._shapes)
        try:
            yield watching
        finally:
            for names in watching.seen:
                for name in names:
                    columns[name] = columns.get(name, False) or name in self._shapes[names].read


class _Watching:
    def __init__(self, shapes: dict[tuple[str, ...], _Shape]) -> None:
        self._shapes = shapes
        self.seen: set[tuple[str, ...]] = set()
        self._names: tuple[str, ...] = ()
        self._row: WatchedColumns | None = None

    def row(self, row: Row) -> Row:
        """The row, watched if there is still something to learn."""
        self._names = tuple([name for name, value in row.values.items() if value is not None])
        self._row = None
        if self._names in self._shapes and self._shapes[self._names].watched >= WATCHED:
            return row
        self._row = WatchedColumns(row.values)
        return replace(row, values=self._row)

    def was_read(self) -> None:
        """Count the last row, which was read to its end. Refused rows are not counted: the error message looks at all
        their columns."""
        self.seen.add(self._names)
        if self._row is not None:
            shape = self._shapes.setdefault(self._names, _Shape())
            shape.watched += 1
            shape.read |= self._row.read


def merge(columns: Columns, later: Columns) -> None:
    """Take over what is known of the rows that follow."""
    for name, read in later.items():
        columns[name] = columns.get(name, False) or read


def unread(by_source: Mapping[int, Columns], settings: Mapping[int, str]) -> str:
    """A sentence about the columns that nothing has looked up; empty if there are none.

    Args:
        by_source: what is known of each source.
        settings: by source, what the recipe calls it; said where there are several.
    """
    unused = {source: sorted(name for name, read in of.items() if not read) for source, of in by_source.items()}
    parts = [
        ", ".join(names) + (f" of {settings[source]}" if len(settings) > 1 else "")
        for source, names in sorted(unused.items())
        if names
    ]
    return f"columns not read: {'; '.join(parts)}" if parts else ""
