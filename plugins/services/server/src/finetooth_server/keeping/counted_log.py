"""Limits repeated lines of the server's log: the first of a cause is shown, the next ones are counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

QUIET = 60.0
"""Seconds between two lines of one cause."""

CAUSES = 256
"""Most causes with separate counts."""


class Causes:
    """Recent lines, and the number of suppressed ones.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}

    def again(self, *cause: object) -> int | None:
        """The number of suppressed lines of a cause since the last shown one; None to suppress this one too."""
        with self._lock:
            last, left = self._seen.get(cause, (-QUIET, 0))
            if self._clock() - last < QUIET:
                self._seen[cause] = last, left + 1
                return None
            if cause not in self._seen and len(self._seen) >= CAUSES:
                self._seen.clear()
            self._seen[cause] = self._clock(), 0
        return left


class Counted:
    """Writes errors to a logger, one line a minute for each cause.

    Args:
        logger: of the server.
        clock: seconds.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger, self._causes = logger, Causes(clock)

    def error(self, what: str, error: BaseException) -> None:
        """Log an error with its trace, or count it if its cause was logged recently.

        Args:
            what: failed, without ids, so that equal causes have equal texts.
        """
        left = self._causes.again(what, type(error).__name__, _line(error))
        if left is not None:
            self._logger.error("%s%s", what, _more(left), exc_info=error)


class CountedLines(logging.Filter):
    """Counts lines of libraries, such as one for each request that is not HTTP.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._causes = Causes(clock)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a line."""
        left = self._causes.again(record.name, record.levelno, record.msg)
        if left:
            record.msg = f"{record.msg}{_more(left)}"
        return left is not None


def count_lines_of_libraries() -> None:
    """Limit loggers that clients can trigger to one line per cause and minute."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(CountedLines())


def _more(left: int) -> str:
    return f" ({left} more like it since)" if left else ""


def _line(error: BaseException) -> int:
    """The place that raised it."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        line, trace = trace.tb_lineno, trace.tb_next
    return line
