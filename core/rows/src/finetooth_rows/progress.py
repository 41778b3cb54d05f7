"""How far a long preparation is, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

QUIET = 2.0
"""Seconds that pass before anything is shown."""
LINE_EVERY = 30.0
"""Seconds between two lines where the output is not a terminal."""


class PreparationProgress:
    """Shows rows done, their rate and the time left; on a terminal as a line that is redrawn, else as a line now and
    then.

    Args:
        label: what is prepared, `data.train`.
        total: of all sizes that `advance` will be told, None if it is not known.
    """

    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._total = label, total
        self._began = self._shown = time.monotonic()
        self._rows = self._done = 0
        self._bar: Any = None

    def advance(self, rows: int, size: int) -> None:
        """So many more rows, of so many characters."""
        self._rows += rows
        self._done += size
        now = time.monotonic()
        if now - self._began < QUIET:
            return
        if sys.stderr.isatty():
            self._draw()
        elif now - self._shown >= LINE_EVERY:
            self._shown = now
            print(self._text(), file=sys.stderr, flush=True)

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        text = f"{self._label}: {self._rows:,} rows, {self._rows / seconds:,.0f} rows/s"
        if not self._total or not self._done:
            return text
        share = min(1.0, self._done / self._total)
        return f"{text}, {share:.0%}, {_clock(seconds * (1 - share) / share)} left"

    def _draw(self) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.live import Live

            self._bar = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
            self._bar.start()
        self._bar.update(self._text(), refresh=True)

    def __enter__(self) -> PreparationProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
