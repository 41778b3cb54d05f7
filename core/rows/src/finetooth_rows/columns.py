"""Records the columns that a format reads, so that an unused column is reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from finetooth_hooks.data.examples import Row

WATCHED = 20
"""Number of watched rows with the same columns: the columns of a row nearly determine which of them are read."""

Columns = dict[str, bool]
"""Non-empty columns, and whether they were read."""


class WatchedColumns(dict[str, Any]):
    """The columns of a row; remembers which were read: all of them after an iteration or a copy."""

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
    """Watches the columns that one format reads."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    @contextmanager
    def over(self, columns: Columns) -> Iterator[_Watching]:
        """Watch rows inside the `with` block; at its end `columns` has the results."""
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
        """The row, watched if its columns need more rows."""
        self._names = tuple([name for name, value in row.values.items() if value is not None])
        self._row = None
        if self._names in self._shapes and self._shapes[self._names].watched >= WATCHED:
            return row
        self._row = WatchedColumns(row.values)
        return replace(row, values=self._row)

    def was_read(self) -> None:
        """Count the last row, after its format has read it. Refused rows are not counted: their error message reads all
        columns."""
        self.seen.add(self._names)
        if self._row is not None:
            shape = self._shapes.setdefault(self._names, _Shape())
            shape.watched += 1
            shape.read |= self._row.read


def merge(columns: Columns, later: Columns) -> None:
    """Add the results of later rows."""
    for name, read in later.items():
        columns[name] = columns.get(name, False) or read


def unread(by_source: Mapping[int, Columns], settings: Mapping[int, str]) -> str:
    """A sentence about unread columns; empty without any.

    Args:
        by_source: the columns of each source.
        settings: the recipe's setting by source, named if there are several.
    """
    unused = {source: sorted(name for name, read in of.items() if not read) for source, of in by_source.items()}
    parts = [
        ", ".join(names) + (f" of {settings[source]}" if len(settings) > 1 else "")
        for source, names in sorted(unused.items())
        if names
    ]
    return f"columns not read: {'; '.join(parts)}" if parts else ""
