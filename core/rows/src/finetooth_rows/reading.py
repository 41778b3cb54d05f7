"""Rows of one split, read portion by portion: in this process or, by the same code, in several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks.data.examples import Example, LeftOut, Row, examples_in
from finetooth_hooks.data.problems import Problems, raise_together
from finetooth_hooks.errors import DataError

from finetooth_rows import openings
from finetooth_rows.choices.choice import Chosen, Selected
from finetooth_rows.columns import ColumnWatch, unread
from finetooth_rows.picked import PickedFormat, PickedSource
from finetooth_rows.read_so_far import Reading
from finetooth_rows.tally import Tally
from finetooth_rows.work import Work, chosen_work, first_of, passes, refusals, rows_of, work_of, work_of_source

DIGEST_BYTES = 8


class SplitRows:
    """The rows of one split, read with sources and formats, as often as needed.

    Args:
        split: `train` or `eval`.
        sources: in the recipe's order.
        formats: the format of each source.
        selection: the chosen rows; None is each once.
        held_out: read the rows that the selection holds out, instead of those it trains.
        count: read only this number of rows from the start; None is all of them.
    """

    def __init__(
        self,
        split: str,
        sources: Sequence[PickedSource],
        formats: Sequence[PickedFormat],
        selection: Selected | None = None,
        *,
        held_out: bool = False,
        count: int | None = None,
    ) -> None:
        self.split, self.sources, self.formats, self.count = split, tuple(sources), tuple(formats), count
        self.selection, self.held_out = selection, held_out
        self.read_to_end: Reading | None = None
        self.openings: openings.Counts = {}  # of all rows, once they were read
        self._watches = tuple(ColumnWatch() for _ in formats)

    def first(self, count: int | None) -> SplitRows:
        """The first `count` rows; all of them for None."""
        if count is None:
            return self
        count = count if self.count is None else min(count, self.count)
        return SplitRows(self.split, self.sources, self.formats, self.selection, held_out=self.held_out, count=count)

    @property
    def dropped(self) -> Tally:
        """Rows that the choice leaves out as repetitions, before the final reading; held-out rows never are
        repetitions."""
        if self.selection is None or self.held_out or self.count is not None:
            return Tally()
        return self.selection.chosen.dropped

    def work(self) -> Iterator[Work]:
        """All work to read, in order; see `work_of`."""
        work = work_of(self.sources) if self.selection is None else self._taken(self.selection.chosen)
        return work if self.count is None else first_of(self.sources, work, self.count)

    def _taken(self, chosen: Chosen) -> Iterator[Work]:
        times = chosen.held if self.held_out else chosen.taken
        for index, picked in enumerate(self.sources):
            for number, taken in enumerate(passes(times[index], chosen.sizes[index])):
                yield from chosen_work(work_of_source(index, picked), taken, number)

    def read(self, work: Work, reading: Reading) -> Iterator[tuple[str, Example]]:
        """Ids and examples of some rows; `reading` records unreadable and left-out rows."""
        for id_, outcome in self.outcomes(work, reading):
            if isinstance(outcome, DataError):
                reading.malformed.add(outcome)
            elif isinstance(outcome, LeftOut):
                reading.left.drop(outcome.reason, id_, settled=outcome.settled)
            else:
                yield id_, outcome

    def outcomes(self, work: Work, reading: Reading) -> Iterator[tuple[str, Example | LeftOut | DataError]]:
        """The formats' results for some rows, in order, with ids. Several examples of a row have the ids `ROW#1`,
        `ROW#2`, ...; repetitions in an epoch end in `~2`, `~3`, ..."""
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
                    examples = examples_in(format_.read(watching.row(row)))
                except DataError as error:
                    yield f"{row.id}{again}", error
                    continue
                watching.was_read()
                left = sum(isinstance(example, LeftOut) for example in examples)
                reading.left.rows += 1 - (len(examples) - left)  # the others later count as row and example
                reading.left.examples += left
                for number, example in enumerate(examples, start=1):
                    if not isinstance(example, LeftOut):
                        openings.count(reading.left.openings, example)
                    yield f"{row.id}{f'#{number}' if len(examples) > 1 else ''}{again}", example
        reading.good[work.source] = reading.good.get(work.source, 0) + good

    def unread(self, reading: Reading) -> str:
        """A sentence about the columns that no format has read; empty without any."""
        return unread(reading.columns, {index: picked.setting for index, picked in enumerate(self.sources)})

    def _rows(self, work: Work, reading: Reading) -> Iterator[Row]:
        folder = _folder(self.sources[work.source])
        for item in rows_of(self.sources, work):
            if isinstance(item, Row):
                yield item if folder is None or item.folder is not None else Row(item.id, item.values, folder)
            else:
                reading.broken.setdefault(work.source, Problems()).add(item)

    def check(self, reading: Reading) -> None:
        """Check the results after all rows were read.

        Raises:
            DataError: rows are unreadable or not of the format (all errors at once), or two rows have the same id.
        """
        malformed = reading.malformed.error(reading.rows)
        raise_together([*refusals(self.sources, reading), *([] if malformed is None else [malformed])])
        digests = np.frombuffer(bytes(reading.digests), np.uint64)
        values, counts = np.unique(digests, return_counts=True)
        if (counts > 1).any():
            self._refuse_twins(digests, frozenset(values[counts > 1].tolist()))

    def _refuse_twins(self, digests: np.ndarray[Any, np.dtype[np.uint64]], twice: frozenset[int]) -> None:
        """Read the rows again, to distinguish two rows with one id from two ids with one digest."""
        seen: set[str] = set()
        firsts = (work for work in self.work() if not work.time)
        ids = (item.id for work in firsts for item in rows_of(self.sources, work) if isinstance(item, Row))
        for id_, digest in zip(ids, digests.tolist(), strict=False):
            if digest in twice:
                if id_ in seen:
                    raise DataError(id_, "two rows have this id", action="name each file or source once")
                seen.add(id_)


def _folder(picked: PickedSource) -> Path | None:
    """The folder of files that rows name: the one of the source's files, if it has files."""
    folders = {path.parent for path in picked.files() or ()}
    return folders.pop() if len(folders) == 1 else None
