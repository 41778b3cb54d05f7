"""Python's collector of reference cycles in a server. A full collection visits every object while all threads wait:
half a million objects from imports, and the rows of current requests, several times while a large one is read. Requests
make no cycles, so they need no collector."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

NEVER = 2**30

APART = 10.0
"""Seconds between two collections, unless `MANY` requests came since: a client that opens and closes many models does
not stop all others each time."""

MUCH = 50_000
"""Objects."""

WHOLE = 3600.0
"""Seconds between two freezes of many survivors."""

MANY = 4
"""Most postponed requests; each may hold the memory of a closed model."""


def settle() -> None:
    """Freeze imported objects and leave full collections to `Collector`; called before clients come."""
    gc.collect()
    gc.freeze()
    youngest, young, _ = gc.get_threshold()
    gc.set_threshold(youngest, young, NEVER)


class Collector:
    """Runs requested collections.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._due, self._put_off = clock, float("-inf"), 0
        self._whole_due = float("-inf")

    def collect(self, *, guest: bool = False) -> None:
        """Run a full collection, which frees closed models, whose parts refer to each other. Within `APART` seconds of
        the last one the request is postponed to a later call. Many survivors, such as the imports of the first model,
        are frozen; at most once an hour the frozen objects are collected too. Without `settle`, Python's own
        collections do the work: the process is another program's and may hold millions of objects.

        Args:
            guest: collect there too.
        """
        if gc.get_threshold()[2] != NEVER:
            if guest:
                gc.collect()
            return
        if self._clock() < self._due and self._put_off + 1 < MANY:
            self._put_off += 1
            return
        gc.collect()
        if self._clock() >= self._whole_due and len(gc.get_objects()) > MUCH:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            self._whole_due = self._clock() + WHOLE
        self._due, self._put_off = self._clock() + APART, 0


collect = Collector().collect
