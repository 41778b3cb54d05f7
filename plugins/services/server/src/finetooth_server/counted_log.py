"""Lines of the server's own log, where one cause may come up ten thousand times: shown the first time, then counted."""

from __future__ import annotations

import logging
import threading
import time

QUIET = 60.0
"""Seconds between two lines of one cause."""

CAUSES = 256
"""The most causes that are counted apart."""


class Counted:
    """Writes errors to a logger, one line a minute for each cause.

    Args:
        logger: of the server.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger, self._lock = logger, threading.Lock()
        self._seen: dict[tuple[str, str, int], tuple[float, int]] = {}

    def error(self, what: str, error: BaseException) -> None:
        """Note an error: with its trace if its cause was not noted lately, else it is counted.

        Args:
            what: failed, without ids, so that the same cause reads the same.
        """
        cause = (what, type(error).__name__, _line(error))
        with self._lock:
            last, left = self._seen.get(cause, (-QUIET, 0))
            if time.monotonic() - last < QUIET:
                self._seen[cause] = last, left + 1
                return
            if cause not in self._seen and len(self._seen) >= CAUSES:
                self._seen.clear()
            self._seen[cause] = time.monotonic(), 0
        more = f" ({left} more like it since)" if left else ""
        self._logger.error("%s%s", what, more, exc_info=error)


def _line(error: BaseException) -> int:
    """Where it was raised."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        line, trace = trace.tb_lineno, trace.tb_next
    return line
