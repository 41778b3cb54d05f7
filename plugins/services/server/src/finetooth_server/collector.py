"""Python's collector of reference cycles in a server. A full collection walks over every object that there is, and
everybody waits for it: over half a million that imports made, and over the rows of whatever requests are at hand, a few
times while a large one is read. What requests make holds no cycles, and goes without a collector."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

NEVER = 2**30

APART = 10.0
"""Seconds between two collections, unless `MANY` were asked for since: who opens and closes models one after the other
does not stop everybody with each of them."""

MUCH = 50_000
"""Objects."""

WHOLE = 3600.0
"""Seconds between two times at which much that is left is put away from collections."""

MANY = 4
"""Collections that are asked for and put off, at most: what waits for one is as many models."""


def settle() -> None:
    """Before clients come: what was imported so far is looked at no more, and full collections begin when asked for."""
    gc.collect()
    gc.freeze()
    youngest, young, _ = gc.get_threshold()
    gc.set_threshold(youngest, young, NEVER)


class Collector:
    """Collections that are asked for.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._due, self._put_off = clock, float("-inf"), 0
        self._whole_due = float("-inf")

    def collect(self, *, guest: bool = False) -> None:
        """A full collection: models that were let go of, whose parts refer to each other, and what else is left. One
        that comes soon after another is put off: the next that is asked for does its work, which is a minute later at
        most, or whoever has too little memory on a device. What is left is looked at no more where it is much, as what
        the first model imported is; once an hour at most, and then all that is looked at no more is looked at again.
        Where nobody settled, Python's own collections come for
        them: a service is a guest in that process, which may hold millions of objects.

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
