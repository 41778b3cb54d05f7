"""The charts of a page as one picture, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetooth_saving.runs.chart import COLOURS, Chart
from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Pixels of the picture for one of the chart."""
COLUMNS = 2


def draw(charts: Sequence[Chart], place: Path) -> Path:
    """Draw charts in a grid; returns the file.

    Raises:
        OSError: it cannot be written.
    """
    width, height = max(chart.width for chart in charts), max(chart.height for chart in charts)
    columns = min(COLUMNS, len(charts))
    rows = -(-len(charts) // columns)
    image = Image.new("RGB", (SCALE * width * columns, SCALE * height * rows), "white")
    pen = ImageDraw.Draw(image)
    for index, chart in enumerate(charts):
        _draw(pen, chart, (index % columns) * width, (index // columns) * height)
    beside = place.with_name(f".{place.name}.tmp")
    try:
        image.save(beside, format="PNG")
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)
    return place


def _draw(pen: ImageDraw.ImageDraw, chart: Chart, x0: int, y0: int) -> None:
    small, large = ImageFont.load_default(10 * SCALE), ImageFont.load_default(12 * SCALE)

    def at(x: float, y: float) -> tuple[float, float]:
        return SCALE * (x0 + x), SCALE * (y0 + y)

    pen.text(at(chart.left, 4), chart.title, fill="black", font=large)
    for y, text in chart.y_ticks:
        pen.line([at(chart.left, y), at(chart.right, y)], fill="#dddddd", width=SCALE)
        pen.text(at(chart.left - 5, y), text, fill="black", font=small, anchor="rm")
    for x, text in chart.x_ticks:
        pen.text(at(x, chart.bottom + 4), text, fill="black", font=small, anchor="ma")
    for index, points in enumerate(chart.curves.values()):
        colour = COLOURS[index % len(COLOURS)]
        if len(points) > 1:
            pen.line([at(x, y) for x, y in points], fill=colour, width=SCALE)
        if len(points) <= 20:
            for x, y in points:
                pen.ellipse([at(x - 2, y - 2), at(x + 2, y + 2)], fill=colour)
    for x, y in chart.marks:
        pen.ellipse([at(x - 5, y - 5), at(x + 5, y + 5)], outline="black", width=SCALE)
    for index, name in enumerate(chart.legend):
        colour = COLOURS[index % len(COLOURS)]
        pen.text(at(chart.right - 4, chart.top + 2 + 14 * index), name, fill=colour, font=small, anchor="ra")
