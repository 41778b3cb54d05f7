"""Tables and values for a terminal, and as plain lines for a pipe or a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from finetooth_toolbox.text.measures import short_hashes

NARROW = 60
"""Width of a terminal, in columns, below which a table that does not fit becomes paragraphs."""

Row = Sequence[str]


def plain_console(**options: Any) -> Console:
    """A console that shows texts unchanged: `:train:` in rows, paths and names stays text, and numbers get no colour.

    Args:
        options: further options of rich, `stderr` or `width`.
    """
    return Console(highlight=False, emoji=False, **options)


def coloured(console: Console) -> bool:
    """Whether to use colour: not in a pipe, not on a terminal without colour, and not if the user forbids it
    (`NO_COLOR`)."""
    return console.color_system is not None and not console.no_color


def show(console: Console, *parts: RenderableType) -> None:
    """Print parts with an empty line between them."""
    for part in parts:
        console.print(part, soft_wrap=not console.is_terminal)
        console.print()


def table(console: Console, title: str, headers: Row, rows: Iterable[Row], *, numbers: int = 0) -> RenderableType:
    """A table; aligned lines for a pipe or a file, so that they can be searched and compared. If columns would be too
    narrow for words in a terminal, each row is a paragraph.

    Args:
        numbers: number of columns with numbers, from the second.
    """
    lines = [tuple(row) for row in rows]
    if not console.is_terminal:
        return Text("\n".join([title, *(f"  {line}" for line in _aligned([tuple(headers), *lines]))]))
    if console.width < NARROW and max(map(len, _aligned([tuple(headers), *lines]))) > console.width:
        return Group(Text(title, style="bold"), *(part for line in lines for part in _paragraph(headers, line)))
    made = Table(header_style="dim", box=None, pad_edge=False)
    for index, header in enumerate(headers):
        made.add_column(header, justify="right" if 0 < index <= numbers else "left", overflow="fold")
    for line in lines:
        made.add_row(*map(Text, line))
    return Group(Text(title, style="bold"), made)


def _paragraph(headers: Row, row: Row) -> list[RenderableType]:
    """The first cell of a row, and a line for each other cell that is not empty."""
    lines = [f"{header}: {cell}" for header, cell in zip(headers[1:], row[1:], strict=True) if cell not in ("", "-")]
    return [Text(row[0]), *(Padding(Text(line), (0, 0, 0, 2), expand=False) for line in lines)]


def value(decided: Any) -> str:
    """A decided value as YAML; of a hash only the first digits."""
    return short_hashes(decided if isinstance(decided, str) else json.dumps(decided, default=str))


def duration(seconds: float) -> str:
    """Seconds as a readable duration."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours or minutes:
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    return f"{seconds:.1f} s" if seconds >= 0.05 or not seconds else f"{1000 * seconds:.2g} ms"


def _aligned(rows: Sequence[Row]) -> list[str]:
    """Rows with columns padded to the widest cell; the last column is not padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
