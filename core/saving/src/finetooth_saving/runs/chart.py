"""Curves as SVG: small charts that need no script and nothing from a network.

`Chart` has the positions; `svg` writes it. Another writer (PNG) draws the same chart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from finetooth_toolbox.text.controls import escape_controls

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
MOST_POINTS = 600
"""Largest number of points of a curve; longer ones are thinned to the least and the greatest value of each section."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A chart with the positions of its elements, in pixels from the upper left corner.

    Attributes:
        title: text above the curves.
        width, height: of the whole.
        left, top, right, bottom: of the area with the curves.
        curves: pixels of each curve, by its name.
        marks: pixels of points with a ring around them.
        x_ticks, y_ticks: place and label.
    """

    title: str
    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int
    curves: Mapping[str, tuple[tuple[float, float], ...]]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, float], ...] = ()

    @property
    def legend(self) -> tuple[str, ...]:
        """Names of the curves, if there are several."""
        return tuple(self.curves) if len(self.curves) > 1 else ()


def chart(
    title: str, series: Mapping[str, Points], *, width: int = 460, height: int = 240, marks: Points = ()
) -> Chart | None:
    """A chart of curves over the steps; None without finite values.

    Args:
        series: (step, value) by name, in the order of the steps.
        marks: points of the curves that get a ring.
    """
    finite = {
        name: thinned([(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)])
        for name, points in series.items()
    }
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    least = 1.0 if all(x.is_integer() for x in xs) else 0.0  # steps are whole numbers
    x_ticks, y_ticks = ticks(min(xs), max(xs), least=least), ticks(min(ys), max(ys))
    x_low, x_high = _span(min(xs), max(xs))
    y_low, y_high = _span(min(*ys, *y_ticks), max(*ys, *y_ticks))
    left, top, right, bottom = 58, 26, width - 12, height - 26

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + (x - x_low) / (x_high - x_low) * (right - left), 1),
            round(bottom - (y - y_low) / (y_high - y_low) * (bottom - top), 1),
        )

    return Chart(
        title,
        width,
        height,
        left,
        top,
        right,
        bottom,
        {name: tuple(place(x, y) for x, y in points) for name, points in finite.items()},
        tuple((place(x, y_low)[0], label(x)) for x in x_ticks),
        tuple((place(x_low, y)[1], label(y)) for y in y_ticks),
        tuple(place(x, y) for x, y in marks),
    )


def svg(made: Chart) -> str:
    """A chart as an SVG element."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {made.width} {made.height}" width="{made.width}" '
        f'height="{made.height}" font-family="sans-serif" font-size="11" role="img">',
        f"<title>{_text(made.title)}</title>",
        f'<text x="{made.left}" y="16" font-size="13" fill="currentColor">{_text(made.title)}</text>',
    ]
    for y, text in made.y_ticks:
        parts.append(f'<path d="M{made.left} {y}H{made.right}" stroke="currentColor" stroke-opacity=".15"/>')
        parts.append(
            f'<text x="{made.left - 5}" y="{y + 4}" text-anchor="end" fill="currentColor">{_text(text)}</text>'
        )
    for x, text in made.x_ticks:
        parts.append(
            f'<text x="{x}" y="{made.bottom + 16}" text-anchor="middle" fill="currentColor">{_text(text)}</text>'
        )
    for index, points in enumerate(made.curves.values()):
        colour = COLOURS[index % len(COLOURS)]
        if len(points) > 2:  # two measurements make no trend
            line = " ".join(f"{x},{y}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(points) <= 20:
            parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in points]
    ring = 'r="5" fill="none" stroke="currentColor" stroke-width="1.5"'
    parts += [f'<circle cx="{x}" cy="{y}" {ring}/>' for x, y in made.marks]
    for index, name in enumerate(made.legend):
        colour, y = COLOURS[index % len(COLOURS)], made.top + 12 + 14 * index
        parts.append(f'<text x="{made.right - 4}" y="{y}" text-anchor="end" fill="{colour}">{_text(name)}</text>')
    return "".join((*parts, "</svg>"))


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` of the points: the least and the greatest of each section, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2))
    chosen: list[tuple[float, float]] = []
    for begin in range(0, len(points), size):
        stretch = points[begin : begin + size]
        chosen += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return chosen


def ticks(low: float, high: float, about: int = 4, least: float = 0.0) -> list[float]:
    """About `about` round numbers between two values, each at least `least` from the next."""
    if not high > low:
        return [low]
    raw = max((high - low) / about, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)] or [low]


def label(value: float) -> str:
    """The label of a number at an axis."""
    return f"{value:.4g}"


def _text(text: str) -> str:
    """Text for SVG, escaped."""
    return escape(escape_controls(text))


def _span(low: float, high: float) -> tuple[float, float]:
    """Two different bounds, even for equal values: half a unit around the value, or a share of a huge value, for which
    half a unit is lost in rounding."""
    around = max(0.5, 1e-3 * abs(low))
    return (low, high) if high > low else (low - around, high + around)
