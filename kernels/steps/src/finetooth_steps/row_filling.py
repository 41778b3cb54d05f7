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

Filling = Literal["rows", "stream"]
"""How data share rows: `rows` as wide as the longest datum, for attention under a mask; `stream` all data of a
micro-batch in one row, for attention that gets the places where sequences begin and stays within them."""

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
