"""Examples of many rows, which are not held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import overload

from finetooth_hooks.data.examples import Example

from finetooth_rows.read_so_far import Reading
from finetooth_rows.reading import SplitRows
from finetooth_rows.work import broken_rows_first

SMALL_ROWS = 2_000
"""Up to this number, rows with at most `SMALL_CHARACTERS` are held in memory and prepared in this process."""
SMALL_CHARACTERS = 50_000_000


def read_examples(rows: SplitRows, reading: Reading) -> Iterator[tuple[str, Example]]:
    """All examples with their ids, one after the other. `reading` records broken and left-out rows; errors are raised
    at the end.

    Raises:
        DataError: rows cannot be read.
    """
    with broken_rows_first(rows.sources, reading):
        for work in rows.work():
            yield from rows.read(work, reading)
    rows.check(reading)
    rows.openings = reading.left.openings


class LazyExamples(Sequence[tuple[str, Example]]):
    """Examples that are read again in every iteration; errors are raised at the end."""

    def __init__(self, rows: SplitRows) -> None:
        self.rows = rows
        self._length: int | None = None

    def __iter__(self) -> Iterator[tuple[str, Example]]:
        reading = Reading()
        count = 0
        for pair in read_examples(self.rows, reading):
            count += 1
            yield pair
        self._length = count

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in iter(self))
        return self._length

    @overload
    def __getitem__(self, index: int) -> tuple[str, Example]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[str, Example]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, Example] | Sequence[tuple[str, Example]]:
        if isinstance(index, slice):
            begin, end = index.start or 0, index.stop
            if begin >= 0 and end is not None and end >= 0 and index.step in (None, 1):
                examples = tuple(LazyExamples(self.rows.first(end)))  # reads only as far as needed
                if len(examples) < end:  # some rows give no example
                    examples = tuple(islice(self, end))
                return examples[begin:end]
            return tuple(self)[index]
        example = next(islice(iter(self), index if index >= 0 else index + len(self), None), None)
        if example is None:
            raise IndexError(index)
        return example


def examples_of(rows: SplitRows) -> Sequence[tuple[str, Example]]:
    """All examples with their ids: a tuple, checked, if they are few (`rows.read_to_end` then reports on the rows);
    else read again in every iteration."""
    reading = Reading()
    examples: list[tuple[str, Example]] = []
    size = 0
    with broken_rows_first(rows.sources, reading):
        for work in rows.work():
            examples += rows.read(work, reading)
            size += work.size
            if len(examples) > SMALL_ROWS or size > SMALL_CHARACTERS:
                return LazyExamples(rows)
    rows.check(reading)
    rows.read_to_end, rows.openings = reading, reading.left.openings
    return tuple(examples)
