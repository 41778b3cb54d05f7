"""Lines of the server's own log, where one cause may come up ten thousand times: shown the first time, then counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

QUIET = 60.0
"""Seconds between two lines of one cause."""

CAUSES = 256
"""The most causes that are counted apart."""


class Causes:
    """What was said lately, and how often it would have been said since.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}

    def again(self, *cause: object) -> int | None:
        """How often a cause came up unsaid since it was last said; None if it was said lately, and is counted."""
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
        """Note an error: with its trace if its cause was not noted lately, else it is counted.

        Args:
            what: failed, without ids, so that the same cause reads the same.
        """
        left = self._causes.again(what, type(error).__name__, _line(error))
        if left is not None:
            self._logger.error("%s%s", what, _more(left), exc_info=error)


class CountedLines(logging.Filter):
    """Counts lines that libraries log of their own accord, such as a line for each request that is not HTTP.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._causes = Causes(clock)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is to be written."""
        left = self._causes.again(record.name, record.levelno, record.msg)
        if left:
            record.msg = f"{record.msg}{_more(left)}"
        return left is not None


def count_lines_of_libraries() -> None:
    """Let what speaks to clients, and what they can make speak, say a thing once a minute."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(CountedLines())


def _more(left: int) -> str:
    return f" ({left} more like it since)" if left else ""


def _line(error: BaseException) -> int:
    """Where it was raised."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        line, trace = trace.tb_lineno, trace.tb_next
    return line
