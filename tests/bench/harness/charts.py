"""Charts as SVG text: bars and lines. The same figures always give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#64748b", "#0891b2")
INK = 'font-family="sans-serif" font-size="12" fill="#444"'
WIDTH, MARGIN = 720, 56
BAR, GAP, LABEL = 20, 8, 210


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="20" font-weight="bold" {INK}>{escape(title)}</text>',
    ]
    return "\n".join([*head, *parts, "</svg>", ""])


def bars(title: str, values: Sequence[tuple[str, float]], unit: str) -> str:
    """Horizontal bars from zero, each with its figure."""
    largest = max((value for _, value in values), default=1.0) or 1.0
    parts = []
    for index, (label, value) in enumerate(values):
        y = 36 + index * (BAR + GAP)
        width = (WIDTH - LABEL - 110) * value / largest
        colour = COLOURS[0] if label.startswith("finetooth") else COLOURS[-2]
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end" {INK}>{escape(label)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{LABEL + width + 6:.1f}" y="{y + 14}" {INK}>{figure(value)} {escape(unit)}</text>',
        ]
    return _svg(44 + len(values) * (BAR + GAP), title, parts)


def lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    up: str,
    logarithmic: bool = False,
    from_zero: bool = True,
) -> str:
    """Lines with their points.

    Args:
        series: points (x, y) by name.
        across, up: what the axes say.
        logarithmic: powers of two stand equally far apart on the x axis.
        from_zero: the y axis begins at 0.
    """
    height, floor, ceiling = 320, 320 - 46, 44
    points = [point for line in series.values() for point in line]
    xs, ys = [p[0] for p in points] or [0.0, 1.0], [p[1] for p in points] or [0.0, 1.0]
    low, high = (0.0 if from_zero else min(ys)), max(ys)
    high = high if high > low else low + 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        scale = math.log2 if logarithmic else float
        left, right = scale(min(xs)), scale(max(xs))
        part = (scale(x) - left) / (right - left) if right > left else 0.5
        return MARGIN + part * (WIDTH - 2 * MARGIN), floor - (y - low) / (high - low) * (floor - ceiling)

    parts = [f'<path d="M{MARGIN},{ceiling} V{floor} H{WIDTH - MARGIN}" fill="none" stroke="#999"/>']
    for x in sorted(set(xs)) if len(set(xs)) <= 10 else (min(xs), max(xs)):
        at, _ = place(x, low)
        parts.append(f'<text x="{at:.1f}" y="{floor + 16}" text-anchor="middle" {INK}>{figure(x)}</text>')
    for y in (low, high):
        _, at = place(min(xs), y)
        parts.append(f'<text x="{MARGIN - 6}" y="{at + 4:.1f}" text-anchor="end" {INK}>{figure(y)}</text>')
    parts.append(f'<text x="{WIDTH / 2:.0f}" y="{floor + 36}" text-anchor="middle" {INK}>{escape(across)}</text>')
    parts.append(f'<text x="{MARGIN}" y="{ceiling - 8}" {INK}>{escape(up)}</text>')
    for index, (name, line) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        placed = [place(x, y) for x, y in line]
        path = " ".join(f"{'M' if i == 0 else 'L'}{x:.1f},{y:.1f}" for i, (x, y) in enumerate(placed))
        dash = ' stroke-dasharray="6 4"' if index else ""
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in placed]
        parts.append(
            f'<text x="{WIDTH - MARGIN}" y="{ceiling - 8 + 16 * index}" text-anchor="end" '
            f'font-family="sans-serif" font-size="12" fill="{colour}">{escape(name)}</text>'
        )
    return _svg(height, title, parts)


def figure(value: float) -> str:
    """A number as one reads it: three digits, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
