"""Examples of many rows, which are not held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import overload

from finetooth_hooks.examples import Example

from finetooth_core.data.reading import Reading, SplitRows, broken_rows_first


class LazyExamples(Sequence[tuple[str, Example]]):
    """Examples that are read anew whenever they are gone through; errors come at the end."""

    def __init__(self, rows: SplitRows) -> None:
        self.rows = rows
        self._length: int | None = None

    def __iter__(self) -> Iterator[tuple[str, Example]]:
        reading = Reading()
        with broken_rows_first(self.rows.sources, reading):
            for work in self.rows.work():
                yield from self.rows.read(work, reading)
        self.rows.check(reading)
        self._length = reading.rows

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self)
        return self._length

    @overload
    def __getitem__(self, index: int) -> tuple[str, Example]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[str, Example]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, Example] | Sequence[tuple[str, Example]]:
        if isinstance(index, slice):
            begin, end = index.start or 0, index.stop
            if begin >= 0 and end is not None and end >= 0 and index.step in (None, 1):
                return tuple(LazyExamples(self.rows.first(end)))[begin:]  # reads no further than it must
            return tuple(self)[index]
        found = next(islice(iter(self), index if index >= 0 else index + len(self), None), None)
        if found is None:
            raise IndexError(index)
        return found
