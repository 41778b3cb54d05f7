"""Several data in one row of the model's input: which of them share a row. Pure: plain numbers only.

A micro-batch's rows are as wide as its longest datum. Each row is begun with the longest datum that is left, and its
gap takes the longest that fits into it, until none does; the budget says how many rows there may be. A row is never
wider than its longest datum would be alone, so attention that looks at whole rows under a block-diagonal mask does not
cost more than it would in padded rectangles, and there are fewer rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Filling = Literal["rows", "stream"]
"""How data share rows: `rows` as wide as the longest datum, for attention under a mask; `stream` all data of a
micro-batch in one row, for attention that gets the places where sequences begin and stays within them."""

TRIAL = (7, 9, 1, 15)
"""Lengths of the segments with which it is tried whether a model keeps segments of a row apart."""
ALLOWED = {8: 1e-6, 4: 1e-3, 2: 0.2}
"""Largest difference of a position's state in a shared row from that alone, as a share of its norm, by bytes of a
number: only rounding."""
INDEPENDENT = {8: 1e-9, 4: 1e-5, 2: 2e-2}
"""Largest difference that another content of its neighbours makes to it: only the order in which experts are fed."""
LEAST_SAVED = 0.05
"""Share of a step's positions that must be saved for rows to be shared: a mask costs something, too."""


def fill_rows(lengths: Sequence[int], budget: int) -> list[list[list[int]]]:
    """Micro-batches of rows of places in `lengths`; every place once. Each micro-batch holds at most `budget`
    positions, unless a datum is longer."""
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], -place))
    left = [lengths[place] for place in order]  # ascending, as `order`
    batches: list[list[list[int]]] = []
    while order:
        width = left[-1]
        rows: list[list[int]] = []
        while order and len(rows) < max(1, budget // width):
            rows.append([order.pop()])
            free = width - left.pop()
            while free and (fitting := bisect_right(left, free)):
                rows[-1].append(order.pop(fitting - 1))
                free -= left.pop(fitting - 1)
        batches.append(rows)
    return batches


def positions_of(rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """Positions that rows of places in `lengths` take, padding included."""
    return len(rows) * max(sum(lengths[place] for place in row) for row in rows)


States = Sequence[NDArray[np.float64]]
"""Of each segment, (positions, D)."""


def trial_tokens(vocabulary: int) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Tokens of the segments that are tried, and the same with other tokens in the first of each two."""
    numbers = [np.arange(n) * (3 + 2 * i) + i for i, n in enumerate(TRIAL)]
    parts = [of % (vocabulary - 1) + 1 for of in numbers]  # id 0 often is padding
    return parts, [part if i % 2 else part % (vocabulary - 1) + 1 for i, part in enumerate(parts)]


def leak(alone: States, shared: States, exchanged: States, size: int) -> str:
    """The fault of states of segments that share rows, at least two per row: they differ or affect each other; empty if
    right.

    Args:
        alone, shared: of `trial_tokens`, each by itself and in rows.
        exchanged: in rows, of those with other tokens in the first of each two.
        size: bytes of a number that the model computes with.
    """
    for i in (1, 3):
        changed = share(exchanged[i], shared[i])
        if changed > INDEPENDENT[size]:
            return f"a sequence sees the one before it in its row ({changed:.1e} of its states change with it)"
    worst = max(share(ours, expected) for ours, expected in zip(shared, alone, strict=True))
    if worst > ALLOWED[size]:
        return f"a sequence gets other states in a shared row than alone ({worst:.1e} apart)"
    return ""


def share(states: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Largest difference of a position, as a share of its norm; infinite if it is NaN."""
    differences = np.linalg.norm(states - expected, axis=-1) / np.maximum(np.linalg.norm(expected, axis=-1), 1e-30)
    worst = float(differences.max())
    return worst if np.isfinite(worst) else float("inf")
