"""Segments: the parts of a datum that attend to themselves alone (`Datum.parents`), each with positions from 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from finetooth_hooks import DataError, Datum
from numpy.typing import NDArray

WHOLE = (0,)
"""Where the only segment of a datum without parents begins."""


def starts_of(datum: Datum) -> tuple[int, ...]:
    """Where the segments begin."""
    if datum.parents is None or len(datum) == 0:
        return WHOLE
    return (0, *(int(at) + 1 for at in np.flatnonzero(np.diff(datum.parents))))


def positions_in(starts: Sequence[int], length: int) -> NDArray[np.int64]:
    """(length,) position ids that begin anew with every segment."""
    begins = np.zeros(length, dtype=np.int64)
    inner = [start for start in starts if start < length]
    begins[inner] = inner
    return np.arange(length, dtype=np.int64) - np.maximum.accumulate(begins)


def check_segments(data: Sequence[Datum], obstacle: str) -> None:
    """
    Args:
        data: of a step.
        obstacle: why segments cannot be kept apart; empty if they can.

    Raises:
        DataError: segments that cannot be kept apart, that are not runs of positions, or that have positions of their
            own; names the datum.
    """
    segmented = [datum for datum in data if len(starts_of(datum)) > 1]
    if not segmented:
        return
    moved = next((datum for datum in data if datum.positions is not None and not _as_counted(datum)), None)
    for datum in segmented:
        where, starts = datum.id or "a datum without id", starts_of(datum)
        assert datum.parents is not None
        if obstacle:
            raise DataError(
                where,
                f"it has {len(starts)} segments (parents), which cannot be kept apart: {obstacle}",
                action="give each segment a datum of its own; of method pretrain, set isolate_documents: false",
            )
        if len(set(datum.parents[list(starts)].tolist())) < len(starts):
            raise DataError(
                where,
                "a segment (parents) goes on behind another one (shared prefixes, strided blocks), which the torch "
                "backend cannot compute yet",
                action="number the segments in the order of their positions, or give each a datum of its own",
            )
    if moved is not None:
        raise DataError(
            moved.id or "a datum without id",
            "it has positions of its own, in a step with data that have segments (parents)",
            action="leave positions out: they begin anew with every segment",
        )


def _as_counted(datum: Datum) -> bool:
    """Its positions are those it would get without."""
    return bool(np.array_equal(datum.positions, positions_in(starts_of(datum), len(datum))))  # type: ignore[arg-type]
