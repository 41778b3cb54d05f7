"""Rows of one split, read portion by portion: in this process or, by the same code, in several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Example, LeftOut, Row, examples_in
from finetooth_hooks.problems import Problems, raise_together
from finetooth_hooks.protocols import Portion
from finetooth_toolbox.files.missing import MissingFile
from finetooth_toolbox.rows.tally import Tally

from finetooth_core.data.choosing import Chosen, fewer_rows, passes, taken_work
from finetooth_core.data.columns import ColumnWatch, unread
from finetooth_core.data.picked import PickedFormat, PickedSource
from finetooth_core.data.read_so_far import Reading

if TYPE_CHECKING:
    from finetooth_core.data.selection import Selection

SMALL_ROWS = 2_000
"""So many rows, if they have no more than `SMALL_CHARACTERS`, are held in memory and prepared in this process."""
SMALL_CHARACTERS = 50_000_000
PORTION_ROWS = 500
PORTION_CHARACTERS = 300_000
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Work:
    """Some rows that are read together.

    Attributes:
        source: index of their source.
        rows: a portion to be read, or rows.
        size: about how many characters.
        places: which rows of the portion are taken, in order; None is all of them.
        time: how often an epoch took them before. From 1 on their ids end in `~2`, `~3`, ...
    """

    source: int
    rows: Portion | tuple[Row, ...]
    size: int
    places: tuple[int, ...] | None = None
    time: int = 0


class SplitRows:
    """The rows of one split, through sources and formats; may be gone through as often as needed.

    Args:
        split: `train` or `eval`.
        sources: in the recipe's order.
        formats: read the rows of each.
        selection: which of the rows; None is each once.
        held_out: those that the selection holds out, not those it takes.
        count: only the first so many rows; None is all of them.
    """

    def __init__(
        self,
        split: str,
        sources: Sequence[PickedSource],
        formats: Sequence[PickedFormat],
        selection: Selection | None = None,
        *,
        held_out: bool = False,
        count: int | None = None,
    ) -> None:
        self.split, self.sources, self.formats, self.count = split, tuple(sources), tuple(formats), count
        self.selection, self.held_out = selection, held_out
        self.read_to_end: Reading | None = None
        self._watches = tuple(ColumnWatch() for _ in formats)

    def first(self, count: int | None) -> SplitRows:
        """The first so many rows; all of them for None."""
        if count is None:
            return self
        count = count if self.count is None else min(count, self.count)
        return SplitRows(self.split, self.sources, self.formats, self.selection, held_out=self.held_out, count=count)

    @property
    def dropped(self) -> Tally:
        """Rows that are left out before they are read for good, since they repeat others; those held out never do."""
        if self.selection is None or self.held_out or self.count is not None:
            return Tally()
        return self.selection.chosen.dropped

    def work(self) -> Iterator[Work]:
        """Everything to be read, in order; see `work_of`."""
        work = work_of(self.sources) if self.selection is None else self._taken(self.selection.chosen)
        return work if self.count is None else first_of(self.sources, work, self.count)

    def _taken(self, chosen: Chosen) -> Iterator[Work]:
        times = chosen.held if self.held_out else chosen.taken
        for index, picked in enumerate(self.sources):
            for number, taken in enumerate(passes(times[index], chosen.sizes[index])):
                yield from taken_work(work_of_source(index, picked), taken, number)

    def read(self, work: Work, reading: Reading) -> Iterator[tuple[str, Example]]:
        """Ids and examples of some rows; what cannot be read, and what is left out, is told to `reading`."""
        for id_, found in self.outcomes(work, reading):
            if isinstance(found, DataError):
                reading.malformed.add(found)
            elif isinstance(found, LeftOut):
                reading.left.drop(found.reason, id_)
            else:
                yield id_, found

    def outcomes(self, work: Work, reading: Reading) -> Iterator[tuple[str, Example | LeftOut | DataError]]:
        """What the formats make of some rows, in order, with the ids: of a row that gives several examples `ROW#1`,
        `ROW#2`, ...; of one that an epoch takes again, with `~2`, `~3`, ... behind it."""
        format_ = self.formats[work.source].format
        again = f"~{work.time + 1}" if work.time else ""
        good = 0
        with self._watches[work.source].over(reading.columns.setdefault(work.source, {})) as watching:
            for row in self._rows(work, reading):
                good += 1
                if not work.time:
                    id_ = row.id.encode("utf-8", "surrogatepass")
                    reading.digests += hashlib.blake2b(id_, digest_size=DIGEST_BYTES).digest()
                try:
                    given = examples_in(format_.read(watching.row(row)))
                except DataError as error:
                    yield f"{row.id}{again}", error
                    continue
                watching.was_read()
                left = sum(isinstance(one, LeftOut) for one in given)
                reading.left.rows += 1 - (len(given) - left)  # each of the others will count as a row and an example
                reading.left.examples += left
                for number, one in enumerate(given, start=1):
                    yield f"{row.id}{f'#{number}' if len(given) > 1 else ''}{again}", one
        reading.good[work.source] = reading.good.get(work.source, 0) + good

    def unread(self, reading: Reading) -> str:
        """A sentence about the columns that no format has looked up; empty if there are none."""
        return unread(reading.columns, {index: picked.setting for index, picked in enumerate(self.sources)})

    def _rows(self, work: Work, reading: Reading) -> Iterator[Row]:
        folder = _folder(self.sources[work.source])
        for item in rows_of(self.sources, work):
            if isinstance(item, Row):
                yield item if folder is None or item.folder is not None else Row(item.id, item.values, folder)
            else:
                reading.broken.setdefault(work.source, Problems()).add(item)

    def check(self, reading: Reading) -> None:
        """After all rows were read.

        Raises:
            DataError: rows cannot be read or are not of the format (all that is wrong at once), or two have one id.
        """
        malformed = reading.malformed.error(reading.rows)
        raise_together([*_refusals(self.sources, reading), *([] if malformed is None else [malformed])])
        found = np.frombuffer(bytes(reading.digests), np.uint64)
        values, counts = np.unique(found, return_counts=True)
        if (counts > 1).any():
            self._refuse_twins(found, frozenset(values[counts > 1].tolist()))

    def _refuse_twins(self, digests: np.ndarray[Any, np.dtype[np.uint64]], twice: frozenset[int]) -> None:
        """Read again, to tell two rows with one id from two ids with one digest."""
        seen: set[str] = set()
        firsts = (work for work in self.work() if not work.time)
        ids = (item.id for work in firsts for item in rows_of(self.sources, work) if isinstance(item, Row))
        for id_, digest in zip(ids, digests.tolist(), strict=False):
            if digest in twice:
                if id_ in seen:
                    raise DataError(id_, "two rows have this id", action="name each file or source once")
                seen.add(id_)

    def examples(self) -> Sequence[tuple[str, Example]]:
        """All examples with their ids: a tuple, checked, if they are few (`read_to_end` then says what became of the
        rows); else read anew whenever they are gone through."""
        from finetooth_core.data.lazy_examples import LazyExamples

        reading = Reading()
        found: list[tuple[str, Example]] = []
        size = 0
        with broken_rows_first(self.sources, reading):
            for work in self.work():
                found += self.read(work, reading)
                size += work.size
                if len(found) > SMALL_ROWS or size > SMALL_CHARACTERS:
                    return LazyExamples(self)
        self.check(reading)
        self.read_to_end = reading
        return tuple(found)


def _folder(picked: PickedSource) -> Path | None:
    """Where files lie that rows name: the folder of the source's files, if they have one."""
    folders = {path.parent for path in picked.files() or ()}
    return folders.pop() if len(folders) == 1 else None


def work_of(sources: Sequence[PickedSource]) -> Iterator[Work]:
    """All rows of the sources, cut into work.

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
    """All rows of one source, cut into work, the same way every time.

    Raises:
        DataError: a file is missing or broken, or a row of a source without portions.
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
    """About how long a value is as text."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 8


def first_of(sources: Sequence[PickedSource], work: Iterator[Work], count: int) -> Iterator[Work]:
    """The work that holds the first `count` rows, and nothing after them; of a portion in which a row before that is
    broken all, for it to be found."""
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
    """Rows at some places, in order."""
    wanted = iter(places)
    next_ = next(wanted, None)
    for place, item in enumerate(rows):
        if place == next_:
            yield item
            next_ = next(wanted, None)
    if next_ is not None:
        raise fewer_rows()


def check_sources(sources: Sequence[PickedSource], reading: Reading) -> None:
    """
    Raises:
        DataError: a source has rows that cannot be read.
    """
    raise_together(_refusals(sources, reading))


def _refusals(sources: Sequence[PickedSource], reading: Reading) -> list[DataError]:
    found = []
    for index in sorted(reading.broken):
        source = sources[index].source
        found.append(source.refusal(reading.broken[index], reading.good.get(index, 0)))
    return found


@contextmanager
def broken_rows_first(sources: Sequence[PickedSource], reading: Reading) -> Iterator[None]:
    """A source with rows that cannot be read goes before one that is missing, if it comes first in the recipe."""
    try:
        yield
    except DataError:
        check_sources(sources, reading)
        raise


def first_row(sources: Sequence[PickedSource]) -> Row:
    """The first row that can be read, by which the format is found.

    Raises:
        DataError: there is none.
    """
    reading = Reading()
    for work in work_of(sources):
        for item in rows_of(sources, work):
            if isinstance(item, Row):
                return item
            reading.broken.setdefault(work.source, Problems()).add(item)
    check_sources(sources, reading)
    raise DataError(sources[0].setting, "it has no rows", action="check the path")


def read_all(sources: Sequence[PickedSource]) -> None:
    """Read every row and forget it, since what is wrong with the files goes before all that is wrong with the rows.

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
