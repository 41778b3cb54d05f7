"""Ranks act alike: three of them, each in a thread, over a line of queues."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import pytest
from finetooth_hooks.errors import EngineError, StopRun
from finetooth_saving import room
from finetooth_saving.alike import Alike
from finetooth_saving.room import once_there_is_room
from finetooth_toolbox import blame

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


def at_all(body: Callable[[int, Alike], T], *, together: bool = True, line: type[Line] = Line) -> list[T]:
    given, barrier = [None] * WORLD, threading.Barrier(WORLD)
    results: list[Any] = [None] * WORLD

    def work(rank: int) -> None:
        own: Any = line(rank, given, barrier)
        results[rank] = body(rank, Alike(own, together=together))

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


def test_a_stop_where_a_run_ends_is_that_of_all_and_what_fails_there_is_raised_behind_it() -> None:
    def ends(rank: int, alike: Alike) -> Any:
        with pytest.raises((StopRun, OSError)) as caught, alike.last_stops(at_all=True):
            if rank == 0:
                raise OSError("its disk is broken")
            if rank == 1:
                raise StopRun("enough", exit_code=3)
        return str(caught.value)

    for together in (True, False):
        assert at_all(ends, together=together)[1:] == ["enough"] * 2

    def late(rank: int, alike: Alike) -> str:
        """What the last step left for later; a rank whose save failed says that."""

        def stop() -> None:
            if rank == 2:
                raise StopRun("late")

        alike.later(stop)
        try:
            with alike.last_stops(at_all=True):
                if rank == 0:
                    raise OSError("its disk is broken")
        except (StopRun, OSError) as error:
            return str(error)
        return "none"

    assert at_all(late) == ["its disk is broken", "late", "late"]


def test_ranks_that_save_alone_do_not_wait_for_each_other_at_their_ends() -> None:
    """One of them may have ended: a line that nobody else is at would raise."""

    def ends(rank: int, alike: Alike) -> None:
        if rank == 1:
            with pytest.raises(StopRun), alike.last_stops():
                raise StopRun("enough")

    at_all(ends, together=False)


def test_a_disk_that_is_full_at_one_rank_is_full_at_all() -> None:
    def fails(rank: int, alike: Alike) -> tuple[str, bool]:
        with pytest.raises(EngineError) as caught, alike.fails():
            if rank == 1:
                raise EngineError("artifact cannot be written") from OSError(errno.ENOSPC, "No space left on device")
        return str(caught.value), blame.is_full(caught.value)

    assert at_all(fails) == [("artifact cannot be written", True)] * WORLD

    def breaks(rank: int, alike: Alike) -> tuple[str, bool]:
        """What is no error of ours counts as well."""
        with pytest.raises((EngineError, ZeroDivisionError)) as caught, alike.fails():
            if rank == 1:
                raise ZeroDivisionError("by nothing")
        return str(caught.value), blame.is_full(caught.value)

    assert at_all(breaks) == [("by nothing", False)] * WORLD


class Disk:
    """Fails as often as it is told."""

    def __init__(self, full: int, then: Exception | None = None) -> None:
        self.full, self.then, self.asked = full, then, 0

    def save(self) -> str:
        self.asked += 1
        if self.asked <= self.full:
            raise EngineError("it cannot be written") from OSError(errno.ENOSPC, "No space left on device")
        if self.then is not None:
            raise self.then
        return "saved"


def waited(disks: list[Disk], seconds: float, asked: Callable[[int], bool] = lambda rank: False, **line: Any) -> Any:
    said: list[list[str]] = [[] for _ in disks]

    def save(rank: int, alike: Alike) -> str:
        try:
            return once_there_is_room(disks[rank].save, alike, seconds, lambda: asked(rank), said[rank].append)
        except EngineError as error:
            return str(error)

    return at_all(save, **line), said


def test_ranks_try_again_together_while_the_disk_of_one_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PAUSE", 0.0)
    disks = [Disk(3), Disk(0), Disk(1)]
    given, said = waited(disks, 1e9)
    assert given == ["saved"] * WORLD and [disk.asked for disk in disks] == [4] * WORLD
    assert all(len(lines) == 1 and "waits for room" in lines[0] for lines in said)
    disks = [Disk(3), Disk(0), Disk(1)]
    given, said = waited(disks, 1e9, together=False)
    assert given == ["saved"] * WORLD and [disk.asked for disk in disks] == [4, 1, 2] and said[1] == []


@pytest.mark.parametrize("ends", ["time", "user", "another error"])
def test_the_wait_of_ranks_ends_at_all(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """The user asks one rank, or a rank fails otherwise: nobody is left waiting."""
    monkeypatch.setattr(room, "PAUSE", 0.0)
    disks = [Disk(99), Disk(1, EngineError("out of memory") if ends == "another error" else None), Disk(0)]
    given, _ = waited(disks, 0.0 if ends == "time" else 1e9, lambda rank: ends == "user" and rank == 2)
    assert given[0] == "it cannot be written" and "saved" not in given
    assert [disk.asked for disk in disks] == [2 if ends == "another error" else 1] * WORLD


def test_ranks_wait_for_one_that_is_busy_where_they_meet() -> None:
    """Those that save alone wait at the end of the run alone."""

    class Patient(Line):
        def __init__(self, rank: int, given: list[Any], barrier: threading.Barrier) -> None:
            super().__init__(rank, given, barrier)
            self.inside = self.waited = 0

        @contextmanager
        def waits(self) -> Iterator[None]:
            self.inside += 1
            yield
            self.inside -= 1
            self.waited += 1
            self._barrier.wait(20)

    def meets(rank: int, alike: Alike) -> list[int]:
        line: Any = alike._line
        counts = []
        with alike.fails():
            counts.append(line.inside)
        with pytest.raises(EngineError) if rank == 1 else nullcontext(), alike.last_stops(at_all=True):
            counts.append(line.inside)
            if rank == 1:
                raise EngineError("its disk is broken")
        return [*counts, line.waited]

    assert at_all(meets, line=Patient) == [[1, 1, 2]] * WORLD
    assert at_all(meets, line=Patient, together=False) == [[0, 1, 1]] * WORLD
