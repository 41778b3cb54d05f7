"""Ranks act alike: three of them, each in a thread, over a line of queues."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from finetooth_hooks.errors import EngineError, StopRun
from finetooth_saving.alike import Alike

T = TypeVar("T")
WORLD = 3


class Line:
    """A rank's line: every call waits for all."""

    world = WORLD

    def __init__(self, rank: int, given: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self._given, self._barrier = rank, given, barrier

    def gather(self, value: Any) -> list[Any]:
        self._given[self.rank] = value
        self._barrier.wait(20)
        values = list(self._given)
        self._barrier.wait(20)
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]


def at_all(body: Callable[[int, Alike], T], *, together: bool = True) -> list[T]:
    given, barrier = [None] * WORLD, threading.Barrier(WORLD)
    results: list[Any] = [None] * WORLD

    def work(rank: int) -> None:
        line: Any = Line(rank, given, barrier)
        results[rank] = body(rank, Alike(line, together=together))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(WORLD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_the_first_rank_leads() -> None:
    assert at_all(lambda rank, alike: (alike.leads, alike.first(rank), alike.alone)) == [
        (True, 0, False), (False, 0, False), (False, 0, False)
    ]  # fmt: skip
    alone = Alike()
    assert (alone.leads, alone.first(7), alone.alone, alone.are_lost()) == (True, 7, True, False)


def test_a_signal_at_one_rank_is_that_of_all_that_save_together() -> None:
    def asked(rank: int, alike: Alike) -> list[int]:
        return [alike.signal(0), alike.signal(15 if rank == 2 else 0), alike.signal(0)]

    assert at_all(asked) == [[0, 15, 15]] * WORLD
    assert at_all(lambda rank, alike: [alike.signal(rank)], together=False) == [[0], [1], [2]]


def test_a_stop_at_one_rank_is_that_of_all() -> None:
    def stopped(rank: int, alike: Alike) -> Any:
        with alike.stops():
            pass
        with pytest.raises(StopRun) as caught, alike.stops():
            if rank == 1:
                raise StopRun("enough", exit_code=3)
        return caught.value.reason, caught.value.exit_code

    assert at_all(stopped, together=False) == [("enough", 3)] * WORLD
    own = StopRun("enough")
    with pytest.raises(StopRun) as caught, Alike().stops():
        raise own
    assert caught.value is own


def test_ranks_that_have_lost_each_other_say_so() -> None:
    class Broken(Line):
        def gather(self, value: Any) -> list[Any]:
            raise EngineError("rank 0 lost the others: Connection closed")

        def broadcast(self, value: Any) -> Any:
            return value

    line: Any = Broken(0, [], threading.Barrier(1))
    assert Alike(line, together=True).are_lost()
    assert not Alike(line).are_lost()
    assert at_all(lambda rank, alike: alike.are_lost()) == [False] * WORLD
