"""Python's collector of reference cycles in a server. A full collection walks over every object that there is, and
everybody waits for it: over half a million that imports made, and over the rows of whatever requests are at hand, a few
times while a large one is read. What requests make holds no cycles, and goes without a collector."""

from __future__ import annotations

import gc

NEVER = 2**30


def settle() -> None:
    """Before clients come: what was imported so far is looked at no more, and full collections begin when asked for."""
    gc.collect()
    gc.freeze()
    youngest, young, _ = gc.get_threshold()
    gc.set_threshold(youngest, young, NEVER)


def collect() -> None:
    """A full collection: models that were let go of, whose parts refer to each other, and what else is left. Where
    nobody settled, Python's own collections come for them: a service is a guest in that process, which may hold
    millions of objects."""
    if gc.get_threshold()[2] == NEVER:
        gc.collect()
