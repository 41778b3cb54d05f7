"""Tables of plain text that fit where they are shown, without colour and without signs that a terminal may lack."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

from finetooth_toolbox.text.controls import escape_controls

Row = Sequence[str]


def width() -> int | None:
    """Columns of the terminal; None for a pipe or a file, whose lines may be as long as they like."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(headers: Row, rows: Sequence[Row], columns: int | None) -> str:
    """Rows aligned under their headers. Where that is too wide, each row is a paragraph with a line for each cell
    under its first one."""
    rows = [[escape_controls(cell).replace("\n", " ").replace("\t", " ") for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in (headers, *rows)) for index in range(len(headers))]
    lines = [
        "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in (headers, *rows)
    ]
    if columns is None or max(map(len, lines)) <= columns:
        return "\n".join(lines)
    paragraphs = []
    for row in rows:
        cells = (
            f"  {header}: {cell}" for header, cell in zip(headers[1:], row[1:], strict=True) if cell not in ("", "-")
        )
        paragraphs.append("\n".join(shortened(line, columns) for line in (row[0], *cells)))
    return "\n".join(paragraphs)


def shortened(text: str, columns: int) -> str:
    """At most so many characters, with `...` for what is missing."""
    return text if len(text) <= columns else text[: max(0, columns - 3)] + "..."


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def moment(seconds: float) -> str:
    """A time as `2026-11-23 08:13`; `-` where it is not known."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"


def number(value: float | None) -> str:
    """Four figures; `-` for none."""
    return "-" if value is None else f"{value:.4g}"
