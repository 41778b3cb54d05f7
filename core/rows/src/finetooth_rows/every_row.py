"""Rows one after the other, including broken ones, at which a run would end, and rows that their format leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from finetooth_hooks.data.examples import Example, LeftOut
from finetooth_hooks.data.problems import Problems
from finetooth_hooks.errors import DataError

from finetooth_rows.read_so_far import Reading
from finetooth_rows.reading import SplitRows


@dataclass
class _Heard(Problems):
    """Passes on each error at its row, instead of counting it."""

    waiting: list[DataError] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        self.waiting.append(error)

    def taken(self) -> Iterator[DataError]:
        """The errors that were not yet taken."""
        yield from self.waiting
        self.waiting.clear()


def every_row(rows: SplitRows) -> Iterator[tuple[str, Example | LeftOut] | DataError]:
    """Ids and examples in order, or the format's reason for leaving one out; an error for each row that is unreadable
    or not of the format.

    Raises:
        DataError: a source is missing, or cannot be read any further.
    """
    for work in rows.work():
        heard = _Heard()
        for id_, outcome in rows.outcomes(work, Reading(broken={work.source: heard})):
            yield from heard.taken()
            yield outcome if isinstance(outcome, DataError) else (id_, outcome)
        yield from heard.taken()
