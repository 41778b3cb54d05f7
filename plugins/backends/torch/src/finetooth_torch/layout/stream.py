"""A micro-batch as one stream of tokens without padding, in which sequences share common beginnings.

Rows form a tree of segments: a common beginning of several rows is one segment, computed once, with the rows' rests
below it. In a causal model the states of a shared beginning do not depend on what follows, so every row gets the same
numbers as alone, and the rows' gradients add up in the shared part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from finetooth_kernels.decoder import Stream
from finetooth_kernels.segments import Segment
from finetooth_steps.layout import least_saved, worth_sharing
from finetooth_steps.segments import Piece
from numpy.typing import NDArray

from finetooth_torch.layout.rectangles import Rectangle, on_host
from finetooth_torch.offload.transfers import placed_together


@dataclass
class _Writer:
    """Writes segments in depth-first order; with `share`, rows share a common beginning if that saves `least`
    (`worth_sharing`)."""

    tokens_st: NDArray[np.int64]
    positions_st: NDArray[np.int64] | None
    lengths: Sequence[int]
    cells_st: NDArray[np.int64]
    pieces: Sequence[Sequence[Piece]] | None
    share: bool
    least: float
    size: int = 0
    tokens: list[NDArray[np.int64]] = field(default_factory=list)
    positions: list[NDArray[np.int64]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def write(self, rows: Sequence[int], done: int) -> None:
        """Segments for `rows`, whose first `done` tokens are already in the stream."""
        if self.pieces is not None:
            for row in rows:
                self._tree(row, self.pieces[row])
            return
        if not self.share or self.positions_st is not None:
            for row in rows:
                self._segment([row], done, self.lengths[row])
            return
        self._branch(rows, done, done)

    def _tree(self, row: int, pieces: Sequence[Piece]) -> None:
        """The row's own segments, each below the one that it continues."""
        below: dict[int, list[int]] = {}
        for number, piece in enumerate(pieces):
            below.setdefault(piece.above, []).append(number)
        places: dict[int, int] = {}  # in `segments`, of pieces whose children are being written
        left = below.get(-1, [])[::-1]
        while left:
            number = left.pop()
            if number in places:
                at = self.segments[places[number]]
                self.segments[places[number]] = Segment(at.start, at.stop, self.size)
                continue
            piece, start = pieces[number], self.size
            self.size += piece.stop - piece.start
            self.tokens.append(self.tokens_st[row, piece.start : piece.stop])
            self.positions.append(np.arange(piece.stop - piece.start) + piece.first)
            self.cells_st[row, piece.start : piece.stop] = np.arange(start, self.size)
            if number in below:
                places[number] = len(self.segments)
                left += [number, *below[number][::-1]]
            self.segments.append(Segment(start, self.size, self.size))

    def _branch(self, rows: Sequence[int], done: int, at: int) -> None:
        """Split `rows`, whose tokens up to `at` are equal, by the token there.

        If the common part is too short for a separate segment, a longer one of some rows is split off later.
        """
        firsts: dict[int, list[int]] = {}
        for row in rows:
            if self.lengths[row] > at:
                firsts.setdefault(int(self.tokens_st[row, at]), []).append(row)
            elif self.lengths[row] > done:  # it ends here, and its tokens were not worth a segment
                self._segment([row], done, self.lengths[row])
        for alike in firsts.values():
            common = self._common(alike, at)
            if len(alike) == 1:
                self._segment(alike, done, self.lengths[alike[0]])
            elif worth_sharing(common - done, [self.lengths[row] - done for row in alike], self.least):
                self._segment(alike, done, common)
            else:
                self._branch(alike, done, common)

    def _common(self, rows: Sequence[int], done: int) -> int:
        """How many tokens all `rows` begin with."""
        shortest = min(self.lengths[row] for row in rows)
        block = self.tokens_st[list(rows), done:shortest]
        differs = np.flatnonzero((block != block[0]).any(0))
        return done + int(differs[0]) if differs.size else shortest

    def _segment(self, rows: Sequence[int], done: int, until: int) -> None:
        start, first = self.size, rows[0]
        self.size += until - done
        self.tokens.append(self.tokens_st[first, done:until])
        positions = self.positions_st
        self.positions.append(np.arange(done, until) if positions is None else positions[first, done:until])
        for row in rows:
            self.cells_st[row, done:until] = np.arange(start, self.size)
        place = len(self.segments)
        self.segments.append(Segment(start, self.size, self.size))
        if len(rows) > 1:
            self.write(rows, until)
            self.segments[place] = Segment(start, start + until - done, self.size)


def make_stream(rectangle: Rectangle, *, share: bool) -> Stream:
    """The stream of a rectangle; rows with their own position ids or segments share nothing.

    Args:
        share: compute common beginnings once. False if rows must not share numbers, as with dropout.
    """
    return laid_out(rectangle, share=share)[0]


def laid_out(rectangle: Rectangle, *, share: bool) -> tuple[Stream, NDArray[np.int64]]:
    """The stream, and its `cells_st` on the host."""
    device, host = rectangle.tokens.device, on_host(rectangle)
    cells_st = np.zeros(host.tokens.shape, dtype=np.int64)
    lengths, least = rectangle.batch.lengths, least_saved(device.type)
    writer = _Writer(host.tokens, host.positions, lengths, cells_st, rectangle.pieces, share, least)
    writer.write(range(len(cells_st)), 0)
    written = [np.concatenate(writer.tokens), np.concatenate(writer.positions).astype(np.int64)]
    tokens, positions, cells = placed_together([*written, cells_st], device)
    return Stream(tokens, positions, tuple(writer.segments), cells), cells_st
