"""A micro-batch: which data the model computes at once, and how many positions of each.

Positions after the last target that counts can neither be seen by an earlier position (attention is causal) nor reach
the loss; they are not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from finetooth_hooks import Datum

from finetooth_steps.row_filling import positions_of


@dataclass(frozen=True)
class MicroBatch:
    """A rectangle of rows.

    Attributes:
        rows: indices into the data, ascending, so that groups stand together in the order the method gave.
        lengths: for each row, how many of its positions are computed.
        packed: rows stand one behind the other and nothing is padded.
        shared: positions among these that are another row's of the same group as well, and are computed there.
        filled: what stands one behind the other in each row that goes through the model, as places in `rows`; empty
            where each has a row to itself.
        pieces: a group that a loss must see whole and that exceeds the budget is computed in these.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    packed: bool = False
    shared: int = 0
    filled: tuple[tuple[int, ...], ...] = ()
    pieces: tuple[MicroBatch, ...] = ()

    @property
    def width(self) -> int:
        """Positions of the longest row."""
        return max(self.lengths)

    @property
    def positions(self) -> int:
        """Positions computed, padding included."""
        if self.filled:
            return positions_of(self.filled, self.lengths)
        return sum(self.lengths) - self.shared if self.packed else len(self.rows) * self.width

    @property
    def computed(self) -> tuple[MicroBatch, ...]:
        """The data in one pass through the model."""
        return self.pieces or (self,)


def computed_length(datum: Datum) -> int:
    """Positions up to the last target that counts, or to the end of an image or sound that this falls into; at least 1,
    so that the row exists."""
    counting = np.flatnonzero(datum.mask)
    length = int(counting[-1]) + 1 if counting.size else 1
    return max([length, *(start + len(chunk) for start, chunk in datum.media if start < length)])


def one_batch(data: Sequence[Datum], *, whole: bool = False) -> MicroBatch:
    """All data as one rectangle, in their order: what a loss with `together: step` sees.

    Args:
        whole: every position counts as computed, also those after the last target that counts.
    """
    lengths = tuple(len(datum) if whole else computed_length(datum) for datum in data)
    return MicroBatch(tuple(range(len(data))), lengths)
