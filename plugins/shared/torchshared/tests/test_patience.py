"""Ranks that wait for a busy one: three of them, each in a thread, whose group is a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from finetooth_torchshared import collective
from finetooth_torchshared.collective import Patience

WORLD = 3


class Group:
    """Sums of least values. `silent` breaks it, as a rank does that says nothing for too long.

    Attributes:
        exchanges: how often all have met in it.
    """

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.exchanges, self.lock = 0, threading.Lock()
        self.barrier = threading.Barrier(WORLD, action=self._reduce)
        self.left = threading.Barrier(WORLD, action=self.given.clear)
        self.often = threading.Event()

    def _reduce(self) -> None:
        self.least = torch.stack(self.given).amin(0)
        self.exchanges += 1
        if self.exchanges > 5:
            self.often.set()

    def all_reduce(self, tensor: torch.Tensor, op: Any, group: Any) -> None:
        assert op == dist.ReduceOp.MIN and group is self
        with self.lock:
            self.given.append(tensor.clone())
        try:
            self.barrier.wait(20)
            tensor.copy_(self.least)
            self.left.wait(20)
        except threading.BrokenBarrierError as error:
            raise RuntimeError("a rank is silent") from error

    def silent(self) -> None:
        self.barrier.abort()
        self.left.abort()


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    made = Group()
    monkeypatch.setattr(dist, "all_reduce", made.all_reduce)
    monkeypatch.setattr(collective, "BEAT", 0.0)
    return made


def at_all(group: Any, body: Callable[[int, Patience], None]) -> list[str]:
    """What each rank raises; empty: nothing."""
    raised = [""] * WORLD

    def work(rank: int) -> None:
        try:
            body(rank, Patience(group))
        except Exception as error:
            raised[rank] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(WORLD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return raised


def test_ranks_wait_as_long_as_the_busy_one_says_that_it_lives(group: Group) -> None:
    ends: list[str] = []

    def body(rank: int, patient: Patience) -> None:
        with patient.waits():
            with patient.waits():
                if rank == 0:
                    assert group.often.wait(30)  # of the others, which can only wait here
                    ends.append("busy")
            ends.append("inner")
            with pytest.raises(OSError, match="broken") if rank == 1 else nullcontext(), patient.waits():
                if rank == 1:
                    raise OSError("its disk is broken")
        ends.append("outer")
        with patient.waits():
            pass

    assert at_all(group, body) == [""] * WORLD
    assert ends == ["busy", *["inner"] * WORLD, *["outer"] * WORLD]


def test_a_silent_rank_ends_the_wait(group: Group) -> None:
    def body(rank: int, patient: Patience) -> None:
        with patient.waits():
            if rank == 2:
                assert group.often.wait(30)
                group.silent()

    assert at_all(group, body) == ["RuntimeError: a rank is silent"] * WORLD


def test_a_rank_that_left_something_out_keeps_nobody(group: Group) -> None:
    """One that failed in the middle: the others are let on where it has left."""

    def body(rank: int, patient: Patience) -> None:
        with patient.waits():
            if rank:
                with patient.waits():
                    pass

    assert at_all(group, body) == [""] * WORLD
