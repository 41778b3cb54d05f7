"""A line chart in braille characters: each holds 2 x 4 dots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of the dot in row r and column c of a braille character, from U+2800."""


def chart(steps: Sequence[int], values: Sequence[float], *, width: int = 72, height: int = 8) -> list[str]:
    """Lines of text that show `values` over `steps`.

    More values than dot columns are averaged column by column; values that are not finite are left out.

    Args:
        steps: rising, as many as values.
        width: characters of the whole chart, labels included.
        height: lines of the plot itself; a line of step numbers comes below.

    Returns:
        `height + 1` lines, or none with fewer than two finite values.
    """
    points = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if len(points) < 2:
        return []
    margin = 8
    columns = max(4, width - margin - 1)
    means = _columns(points, columns * 2)
    low, high = min(means.values()), max(means.values())
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    cells = _draw(means, columns, height, low, high)
    lines = [
        f"{label:>{margin}}┤" + "".join(chr(0x2800 + bits) for bits in row)
        for label, row in zip(labels, cells, strict=True)
    ]
    first, last = str(points[0][0]), str(points[-1][0])
    return [*lines, f"{'step':>{margin}} {first}{last:>{max(len(last) + 1, columns - len(first))}}"]


def _columns(points: Sequence[tuple[int, float]], width: int) -> dict[int, float]:
    """Mean of the values that fall into each of `width` dot columns, in the columns' order."""
    start, span = points[0][0], max(1, points[-1][0] - points[0][0])
    columns: dict[int, list[float]] = {}
    for step, value in points:
        columns.setdefault(round((step - start) / span * (width - 1)), []).append(value)
    return {x: sum(values) / len(values) for x, values in columns.items()}


def _draw(means: dict[int, float], columns: int, rows: int, low: float, high: float) -> list[list[int]]:
    """Braille bits per character of a line through the means."""
    scale = (rows * 4 - 1) / (high - low) if high > low else 0.0
    dots = [(x, round((high - mean) * scale)) for x, mean in means.items()]
    cells = [[0] * columns for _ in range(rows)]

    def mark(x: int, y: int) -> None:
        cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]

    mark(*dots[0])
    for (x0, y0), (x1, y1) in pairwise(dots):
        length = max(x1 - x0, abs(y1 - y0))
        for i in range(1, length + 1):
            mark(x0 + round((x1 - x0) * i / length), y0 + round((y1 - y0) * i / length))
    return cells
