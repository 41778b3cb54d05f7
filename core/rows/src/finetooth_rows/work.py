"""Divides rows of some sources into pieces of work for one process or several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from finetooth_hooks.data.examples import Row
from finetooth_hooks.data.problems import Problems, raise_together
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Portion
from finetooth_toolbox.files.missing import MissingFile
from numpy.typing import NDArray

from finetooth_rows.picked import PickedSource
from finetooth_rows.read_so_far import Reading

PORTION_ROWS = 500
PORTION_CHARACTERS = 300_000


@dataclass(frozen=True)
class Work:
    """Some rows that are read together.

    Attributes:
        source: index of the source.
        rows: a portion to read, or rows.
        size: approximate number of characters.
        places: positions of the chosen rows in the portion, in order; None is all of them.
        time: number of earlier repetitions in the epoch. With 1 or more, the ids end in `~2`, `~3`, ...
    """

    source: int
    rows: Portion | tuple[Row, ...]
    size: int
    places: tuple[int, ...] | None = None
    time: int = 0


def work_of(sources: Sequence[PickedSource]) -> Iterator[Work]:
    """All rows of the sources, divided into pieces of work.

    Raises:
        DataError: a source is missing or has no rows.
    """
    for index, picked in enumerate(sources):
        empty = True
        for work in work_of_source(index, picked):
            empty = False
            yield work
        if empty:
            raise no_rows(picked)


def no_rows(picked: PickedSource) -> DataError:
    """The error for an empty source."""
    where = f"{picked.setting} ({picked.registered.full_name})"
    return DataError(where, "the source has no rows", action="check the path and the source's options")


def work_of_source(index: int, picked: PickedSource) -> Iterator[Work]:
    """All rows of one source, divided into the same pieces of work every time.

    Raises:
        DataError: a file is missing or broken, or a row of a source without portions is.
    """
    try:
        yield from _work_of_source(index, picked)
    except MissingFile as error:
        raise error.of(picked.setting) from error


def _work_of_source(index: int, picked: PickedSource) -> Iterator[Work]:
    source = picked.source
    if "portions" in source.capabilities:
        for portion in source.portions():
            yield Work(index, portion, len(portion.content))
        return
    rows: list[Row] = []
    size = 0
    for row in source.rows():
        rows.append(row)
        size += _characters(row.values)
        if len(rows) >= PORTION_ROWS or size >= PORTION_CHARACTERS:
            yield Work(index, tuple(rows), size)
            rows, size = [], 0
    if rows:
        yield Work(index, tuple(rows), size)


def _characters(value: Any) -> int:
    """Approximate length of a value as text."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 8


def first_of(sources: Sequence[PickedSource], work: Iterator[Work], count: int) -> Iterator[Work]:
    """The work with only the first `count` rows. A portion with an earlier broken row is included in full, so that the
    error is found."""
    for item in work:
        if not count:
            return
        good: list[Row] = []
        broken = False
        for row in rows_of(sources, item):
            if isinstance(row, Row):
                good.append(row)
            broken = broken or not isinstance(row, Row)
            if len(good) == count:
                break
        count -= len(good)
        if count or broken:
            yield item
        else:
            yield Work(item.source, tuple(good), sum(_characters(row.values) for row in good), time=item.time)


def rows_of(sources: Sequence[PickedSource], work: Work) -> Iterable[Row | DataError]:
    """The rows of some work, and an error for each that cannot be read."""
    if not isinstance(work.rows, Portion):
        return work.rows
    source = sources[work.source].source
    rows = source.read(work.rows)
    return rows if work.places is None else _at(rows, work.places)


def _at(rows: Iterator[Row | DataError], places: Sequence[int]) -> Iterator[Row | DataError]:
    """Rows at some positions, in order."""
    wanted = iter(places)
    next_ = next(wanted, None)
    for place, item in enumerate(rows):
        if place == next_:
            yield item
            next_ = next(wanted, None)
    if next_ is not None:
        raise fewer_rows()


def check_sources(sources: Sequence[PickedSource], reading: Reading) -> None:
    """Checks that every row of the sources could be read.

    Raises:
        DataError: a source has rows that cannot be read.
    """
    raise_together(refusals(sources, reading))


def refusals(sources: Sequence[PickedSource], reading: Reading) -> list[DataError]:
    """An error for each source with rows that cannot be read."""
    errors = []
    for index in sorted(reading.broken):
        source = sources[index].source
        errors.append(source.refusal(reading.broken[index], reading.good.get(index, 0)))
    return errors


@contextmanager
def broken_rows_first(sources: Sequence[PickedSource], reading: Reading) -> Iterator[None]:
    """Report a source with unreadable rows before a missing one if it comes first in the recipe."""
    try:
        yield
    except DataError:
        check_sources(sources, reading)
        raise


def first_rows(picked: PickedSource, count: int) -> tuple[Row, ...]:
    """The first readable rows of a source, for detecting the format: at least one, at most those of its first piece.

    Args:
        count: largest number of rows.

    Raises:
        DataError: the source has no readable row.
    """
    reading = Reading()
    for work in work_of([picked]):
        rows: list[Row] = []
        for item in rows_of([picked], work):
            if isinstance(item, Row):
                rows.append(item)
                if len(rows) == count:
                    break
            else:
                reading.broken.setdefault(work.source, Problems()).add(item)
        if rows:
            return tuple(rows)
    check_sources([picked], reading)
    raise DataError(picked.setting, "it has no rows", action="check the path")


def read_all(sources: Sequence[PickedSource]) -> None:
    """Read every row without using it, so that errors in the files are reported before errors in the rows.

    Raises:
        DataError: a source is missing, or has rows that cannot be read.
    """
    reading = Reading()
    with broken_rows_first(sources, reading):
        for work in work_of(sources):
            for item in rows_of(sources, work):
                if isinstance(item, Row):
                    reading.good[work.source] = reading.good.get(work.source, 0) + 1
                else:
                    reading.broken.setdefault(work.source, Problems()).add(item)
    check_sources(sources, reading)


def passes(times: NDArray[np.uint32], sizes: NDArray[np.int64]) -> Iterator[list[tuple[int, ...]]]:
    """For each repetition, the positions of the chosen rows in each portion."""
    ends = np.cumsum(sizes)
    for number in range(int(times.max(initial=0))):
        yield [
            tuple(np.flatnonzero(times[end - size : end] > number).tolist())
            for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)
        ]


def chosen_work(work: Iterator[Work], taken: Sequence[tuple[int, ...]], number: int) -> Iterator[Work]:
    """The work of one source with chosen rows, and their positions.

    Args:
        taken: positions by portion.
        number: number of earlier repetitions.

    Raises:
        DataError: the source has fewer rows than in the first reading.
    """
    for places in taken:
        item = next(work, None)
        if item is None or (places and isinstance(item.rows, tuple) and places[-1] >= len(item.rows)):
            raise fewer_rows()
        if not places:
            continue
        if isinstance(item.rows, tuple):
            yield replace(item, rows=tuple(item.rows[place] for place in places), time=number)
        else:
            yield replace(item, places=places, time=number)


def fewer_rows() -> DataError:
    """The error for a source that changed during the run."""
    return DataError("data", "a source has fewer rows than a moment ago", action="run it again when it is complete")
