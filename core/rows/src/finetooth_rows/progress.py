"""Shows the progress of a long preparation on stderr."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType

from finetooth_toolbox.cli.working import time_left, working

LINE_EVERY = 30.0
"""Seconds between two lines if the output is not a terminal."""


class PreparationProgress:
    """Shows rows done, their rate and the time left; on a terminal as one redrawn line, else as occasional lines.

    Args:
        label: the prepared split, `data.train`.
        total: sum of all sizes that `advance` will get; None if unknown.
    """

    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._total = label, total
        self._began = self._shown = time.monotonic()
        self._rows = self._done = 0
        self._open = ExitStack()
        self._draw = self._open.enter_context(working(f"{label}: reading rows"))

    def advance(self, rows: int, size: int) -> None:
        """Add the number of finished rows and their size in characters."""
        self._rows += rows
        self._done += size
        now = time.monotonic()
        self._draw(self._text(), self._share)
        if not sys.stderr.isatty() and now - self._shown >= LINE_EVERY:
            self._shown = now
            print(self._text() + time_left(self._began, self._share), file=sys.stderr, flush=True)

    @property
    def _share(self) -> float | None:
        return min(1.0, self._done / self._total) if self._total and self._done else None

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        return f"{self._label}: {self._rows:,} rows, {self._rows / seconds:,.0f} rows/s"

    def __enter__(self) -> PreparationProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
