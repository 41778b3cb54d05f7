"""Two ranks as threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Line:
    """A rank's `protocols.Collective`; see `lines`."""

    def __init__(self, rank: int, barrier: threading.Barrier, shelf: dict[int, Any]) -> None:
        self.rank, self.world, self._barrier, self._shelf = rank, 2, barrier, shelf

    def gather(self, value: Any) -> list[Any]:
        self._shelf[self.rank] = value
        self._barrier.wait(60)
        values = [self._shelf[0], self._shelf[1]]
        self._barrier.wait(60)
        return values

    def sum(self, arrays: Any) -> list[Any]:
        return [sum(of) for of in zip(*self.gather(list(arrays)), strict=True)]


def lines() -> tuple[Line, Line]:
    """What connects two ranks."""
    barrier, shelf = threading.Barrier(2), dict[int, Any]()
    return Line(0, barrier, shelf), Line(1, barrier, shelf)


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Each in a thread of its own: what it returned or raised."""
    found: list[Any] = [None] * len(calls)

    def call(place: int) -> None:
        try:
            found[place] = calls[place]()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found
