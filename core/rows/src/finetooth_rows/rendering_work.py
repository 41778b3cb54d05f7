"""Renders some rows to tokens, with the same code in this process and in every worker."""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_hooks.data.preparation import Limit, Render
from finetooth_toolbox.decisions import Decisions, Note

from finetooth_rows.preparing import render_rows
from finetooth_rows.read_so_far import Reading
from finetooth_rows.reading import SplitRows
from finetooth_rows.storage.token_rows import TokenPortion
from finetooth_rows.tally import Tally
from finetooth_rows.work import Work


@dataclass(frozen=True)
class Rendered:
    """The result of a piece of work.

    Attributes:
        portion: the rows that became data.
        tally: counts of the others, by reason.
        reading: unreadable rows.
        notes: notes from the work.
        size: of the work.
    """

    portion: TokenPortion
    tally: Tally
    reading: Reading
    notes: tuple[Note, ...]
    size: int


class Rendering:
    """Reads and renders work.

    Args:
        log: receives notes.
        rows: of the split.
        render: tokens of one example.
        limit: see `render_rows`.
    """

    def __init__(self, log: Decisions, rows: SplitRows, render: Render, limit: Limit | None) -> None:
        self._log, self._rows, self._render, self._limit = log, rows, render, limit

    def __call__(self, work: Work, *, render: bool = True) -> Rendered:
        """
        Args:
            render: False only reads the rows, which is enough after an error in another row.
        """
        earlier = len(self._log.told)
        reading = Reading()
        examples = self._rows.read(work, reading)
        if render:
            portion, tally = render_rows(examples, self._render, self._limit)
        else:
            for _ in examples:
                pass
            portion, tally = render_rows((), self._render, self._limit)
        tally.merge(reading.left)
        return Rendered(portion, tally, reading, tuple(self._log.told[earlier:]), work.size)
