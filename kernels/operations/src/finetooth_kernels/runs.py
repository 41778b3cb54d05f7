"""Rows of one product with different additions: those of several adapters over one base.

    y_n = x_n W^T + b + h_n B_g^T,    h_n = x_n A_g^T,    g the adapter of row n

W is multiplied with all rows at once, A_g and B_g with theirs alone (Chen et al., 2023, "Punica: Multi-Tenant LoRA
Serving", arXiv:2310.18547, section 4). Rows of one adapter that stand next to each other are a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["Run", "pieces"]


class Run(NamedTuple):
    """Rows from `start` up to `stop`, and the packed weight that is theirs alone (`packed_linear` made it)."""

    start: int
    stop: int
    weight: Any


def pieces(runs: Sequence[Run], rows: int, most: int) -> Iterator[tuple[int, int, list[Run]]]:
    """Cut rows into pieces of up to `most`, a piece that is longer being one run, or rows of none.

    Args:
        runs: in their order, apart from each other; rows between them have no run.

    Yields:
        where a piece starts and stops, and its runs, counted from its start.
    """
    start, at, within = 0, 0, list[Run]()
    for run in (*_with_gaps(runs, rows),):
        if run.stop - start > most and at > start:
            yield start, at, within
            start, within = at, []
        if run.weight is not None:
            within.append(Run(run.start - start, run.stop - start, run.weight))
        at = run.stop
    if at > start:
        yield start, at, within


def _with_gaps(runs: Sequence[Run], rows: int) -> Iterator[Run]:
    """The runs, and those without a weight between them."""
    at = 0
    for run in runs:
        if run.start > at:
            yield Run(at, run.start, None)
        yield run
        at = run.stop
    if at < rows:
        yield Run(at, rows, None)
