"""Where data stand that share rows or have segments. Pure: NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetooth_steps.micro_batches import MicroBatch
from finetooth_steps.segments import Piece, is_tree, positions_of, seen_by


@dataclass(frozen=True)
class Placed:
    """Rows as a model reads them, (R, W).

    Attributes:
        source: cells of the flattened rectangle (S, T); padding reads its first one.
        positions: restart with every segment. What pads a row is a segment of its own.
        cells: (S, T) where in the flattened (R, W) each cell of the rectangle is; 0 for padding.
        segments: of each row the lengths of its segments, padding included.
        seen: (R, W, W) which positions of its row each sees, where segments continue others; None: those before it in
            its segment.
    """

    source: NDArray[np.int64]
    positions: NDArray[np.int64]
    cells: NDArray[np.int64]
    segments: tuple[tuple[int, ...], ...]
    seen: NDArray[np.bool_] | None = None


def place_rows(batch: MicroBatch, pieces: Sequence[Sequence[Piece]] | None, multiple: int = 1) -> Placed:
    """Where the rows of a micro-batch stand whose data share rows (`MicroBatch.filled`) or have segments.

    Args:
        pieces: of each row, see `Rectangle.pieces`.
        multiple: that the width of the rows must be of.
    """
    rows = batch.filled or tuple((place,) for place in range(len(batch.rows)))
    width = -(-max(sum(batch.lengths[place] for place in row) for row in rows) // multiple) * multiple
    positions = np.zeros((len(rows), width), dtype=np.int64)
    source = np.zeros((len(rows), width), dtype=np.int64)
    cells = np.zeros((len(batch.rows), batch.width), dtype=np.int64)
    segments: list[tuple[int, ...]] = []
    trees = any(map(is_tree, pieces or ()))
    seen = np.zeros((len(rows), width, width), dtype=bool) if trees else None
    for r, row in enumerate(rows):
        at = 0
        parts: list[int] = []
        for place in row:
            length = batch.lengths[place]
            own = (Piece(0, length),) if pieces is None else pieces[place]
            positions[r, at : at + length] = positions_of(own)
            source[r, at : at + length] = place * batch.width + np.arange(length)
            cells[place, :length] = r * width + at + np.arange(length)
            parts += [piece.stop - piece.start for piece in own]
            if seen is not None:
                seen[r, at : at + length, at : at + length] = seen_by(own)
            at += length
        positions[r, at:] = np.arange(width - at)
        if seen is not None:
            seen[r, at:, at:] = np.tri(width - at, dtype=bool)
        segments.append((*parts, width - at) if at < width else tuple(parts))
    return Placed(source, positions, cells, tuple(segments), seen)
