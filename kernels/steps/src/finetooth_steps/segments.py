"""Segments: runs of positions, each of which continues the one before it; `Datum.parents` makes a tree of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from finetooth_hooks import DataError, Datum
from numpy.typing import NDArray

NO_TREES = "this engine has no way for trees"


@dataclass(frozen=True)
class Piece:
    """A run of positions. A segment that others continue in its middle is cut there into several.

    Attributes:
        start, stop: its positions.
        above: the number of the piece whose last position it continues; -1 where a sequence begins.
        first: the position id of its first position.
    """

    start: int
    stop: int
    above: int = -1
    first: int = 0


def pieces_of(datum: Datum, length: int | None = None) -> tuple[Piece, ...]:
    """The first `length` positions (default: all) in pieces, in their order; a piece stands behind the one above it."""
    n = len(datum) if length is None else length
    if datum.parents is None or n == 0:
        return (Piece(0, n),)
    parents = datum.parents[:n]
    jumps = np.flatnonzero(parents != np.arange(n) - 1)
    behind = parents[jumps] + 1
    starts = sorted({0, *jumps.tolist(), *behind[behind > 0].tolist()})
    ending = {stop - 1: number for number, stop in enumerate([*starts[1:], n])}
    pieces: list[Piece] = []
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        above = ending.get(int(parents[start]), -1)
        first = 0 if above < 0 else pieces[above].first + pieces[above].stop - pieces[above].start
        pieces.append(Piece(start, stop, above, first))
    return tuple(pieces)


def positions_of(pieces: Sequence[Piece]) -> NDArray[np.int64]:
    """Position ids: how far each position is from the beginning of its sequence."""
    return np.concatenate([np.arange(piece.stop - piece.start) + piece.first for piece in pieces])


def is_tree(pieces: Sequence[Piece]) -> bool:
    """Whether a piece continues another one, so that sequences share what they begin with."""
    return any(piece.above >= 0 for piece in pieces)


def seen_by(pieces: Sequence[Piece]) -> NDArray[np.bool_]:
    """(N, N) which positions each of N sees: itself, and those on its path from the beginning."""
    seen = np.zeros((pieces[-1].stop,) * 2, dtype=bool)
    for piece in pieces:
        of = slice(piece.start, piece.stop)
        if piece.above >= 0:
            seen[of] = seen[pieces[piece.above].stop - 1]
        seen[of, of] = np.tri(piece.stop - piece.start, dtype=bool)
    return seen


def check_segments(data: Sequence[Datum], obstacle: str, *, trees: str = NO_TREES) -> None:
    """Checks that the engine can compute the data's segments.

    Args:
        data: of a step.
        obstacle: why segments cannot be kept apart; empty if they can.
        trees: why segments that continue others cannot be computed; empty if they can.

    Raises:
        DataError: parents that do not form a tree, segments that cannot be kept apart or that have positions of their
            own, or a tree that cannot be computed; names the datum.
    """
    for datum in data:
        _check_parents(datum)
    segmented = [(datum, pieces) for datum in data if len(pieces := pieces_of(datum)) > 1]
    if not segmented:
        return
    moved = next((datum for datum in data if datum.positions is not None and not _as_counted(datum)), None)
    for datum, pieces in segmented:
        where = datum.id or "a datum without id"
        if obstacle:
            raise DataError(
                where,
                f"it has {len(pieces)} segments (parents), which cannot be kept apart: {obstacle}",
                action="give each segment a datum of its own; of method pretrain, set isolate_documents: false",
            )
        if is_tree(pieces) and trees:
            raise DataError(
                where,
                f"a segment continues another one (parents is a tree), which cannot be computed: {trees}",
                action="use the torch backend with backend.decoder: auto and backend.attention: auto, or give each "
                "path from the beginning a datum of its own",
            )
    if moved is not None:
        raise DataError(
            moved.id or "a datum without id",
            "it has positions of its own, in a step with data that have segments (parents)",
            action="leave positions out: they restart with every sequence",
        )


def _check_parents(datum: Datum) -> None:
    """
    Raises:
        DataError: a position continues itself or a later one.
    """
    if datum.parents is None:
        return
    wrong = np.flatnonzero((datum.parents >= np.arange(len(datum))) | (datum.parents < -1))
    if wrong.size:
        at = int(wrong[0])
        raise DataError(
            datum.id or "a datum without id",
            f"parents[{at}] is {int(datum.parents[at])}, which does not stand before position {at}",
            action="give the index of an earlier position that it continues, or -1 where a sequence begins",
        )


def _as_counted(datum: Datum) -> bool:
    """Its positions are those it would get without."""
    return bool(np.array_equal(datum.positions, positions_of(pieces_of(datum))))  # type: ignore[arg-type]
