"""Which islands take part in an exchange: a store that the first island keeps says so."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from finetooth_hooks import EngineError
from torch import Tensor
from torch.distributed import ProcessGroupGloo
from torch.distributed.distributed_c10d import PrefixStore, Store

from finetooth_diloco.first_island import PULSE, FirstIslandLost, Watch

FIRST = "the first island"
TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for each other before the first step, and longer than `patience` an island that has joined for a
step of the first one."""
EXCHANGE = 30.0
"""Seconds in which something of an exchange arrives at least; more where patience is longer."""
PAUSE = 0.01
"""Seconds between two looks of the first island at who is there, and of another for what it decided: of those a tenth
of what it has waited, and no more than `PULSE`."""


@dataclass(frozen=True)
class Meeting:
    """One try of an exchange. It is the line that what islands send goes over.

    Attributes:
        name: of the exchange and the try, under which its keys are.
        members: the islands that take part, in order.
        joining: those of them that bring nothing and take what all share.
        group: over the members.
    """

    name: str
    members: tuple[int, ...]
    joining: tuple[int, ...]
    group: Any

    @property
    def world(self) -> int:
        """How many islands the mean is of."""
        return len(self.members) - len(self.joining)

    def sum(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        """Element by element, over all members."""
        flat = torch.cat([array.reshape(-1) for array in arrays]).cpu()
        self.group.allreduce([flat]).wait()
        parts = torch.split(flat.to(arrays[0].device), [array.numel() for array in arrays])
        return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]

    def gather(self, value: Any) -> list[Any]:
        """Arrays of the same shapes that every member gave.

        Args:
            value: a tuple of them.
        """
        columns = []
        for array in value:
            given = torch.from_numpy(array)
            taken = [torch.empty_like(given) for _ in self.members]
            self.group.allgather([taken], [given]).wait()
            columns.append([of_member.numpy() for of_member in taken])
        return list(zip(*columns, strict=True))

    def give(self, content: bytes | None) -> bytes:
        """What the first island gave, at every member."""
        size = torch.tensor([0 if content is None else len(content)])
        self.group.broadcast(size, 0).wait()
        if content is None:
            flat = torch.empty(int(size), dtype=torch.uint8)
        else:
            flat = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self.group.broadcast(flat, 0).wait()
        return flat.numpy().tobytes()


class StoreLine:
    """A line to all ranks over a store that keeps what was said, so that a rank that comes later hears it too.
    Implements of `finetooth_hooks.protocols.Collective` what ranks compare themselves with before the first step."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store, self.rank, self.world = store, rank, world
        self._calls = 0

    def gather(self, value: Any) -> list[Any]:
        """See `finetooth_hooks.protocols.Collective`; JSON alone."""
        self._calls += 1
        self._store.set(f"line/{self._calls}/{self.rank}", json.dumps(value))
        return [json.loads(self._of(rank)) for rank in range(self.world)]

    def broadcast(self, value: Any) -> Any:
        """See `finetooth_hooks.protocols.Collective`; JSON alone."""
        self._calls += 1
        if self.rank == 0:
            self._store.set(f"line/{self._calls}/0", json.dumps(value))
        return json.loads(self._of(0))

    def barrier(self) -> None:
        """See `finetooth_hooks.protocols.Collective`."""
        self.gather(None)

    def sum(self, arrays: Sequence[Any]) -> list[Any]:
        raise _apart("sum")

    def reduce_scatter(self, arrays: Sequence[Any]) -> Any:
        raise _apart("sum")

    def _of(self, rank: int) -> bytes:
        return read(self._store, f"line/{self._calls}/{rank}", f"rank {rank}")


class Membership:
    """This island's view of who is there. The first island decides: an exchange has those that are there once all that
    it expects are, or once its patience ends. It expects who took part in the exchange before, and who has announced
    itself since.

    Attributes:
        joins: this process is a later one of its rank, so it begins with what the others share.

    Args:
        store: kept by the first island.
        patience: seconds.
    """

    def __init__(self, store: Store, rank: int, world: int, patience: float) -> None:
        self._store, self.rank, self._patience = store, rank, patience
        self._life = store.add(f"life/{rank}", 1)
        self.joins = self._life > 1
        self._expected, self._announced = set(range(world)), [0] * world
        self._lives: Sequence[Any] = ()
        self._group: Any = None
        self._tries: tuple[int, int] = (0, 0)
        self._longest = TIMEOUT.total_seconds() if self.joins else 0.0
        apart = store.clone()  # type: ignore[attr-defined]
        self._watch = Watch(apart, max(EXCHANGE, patience)) if rank else None

    def end(self) -> None:
        """Watch the first island no longer."""
        if self._watch is not None:
            self._watch.end()

    def stepped(self, seconds: float) -> None:
        """Another step is done: the first island says so, and the others learn how long one may take.

        Args:
            seconds: that it took, with all that the run did since the step before.
        """
        if self.rank == 0:
            self._store.add("moves", 1)
        self._longest = max(self._longest, seconds)

    def announce(self) -> int:
        """Ask to be expected at the next exchange; returns the step of the newest (0: there was none)."""
        self._store.add(f"announced/{self.rank}", 1)
        return int(read(self._store, "now", FIRST)) if self._store.check(["now"]) else 0

    def meet(self, step: int, joins: bool) -> Meeting | None:
        """Take part in an exchange; None where the others have it without this island.

        Args:
            step: after which it is.
            joins: this island brings nothing.
        """
        number = self._tries[1] + 1 if self._tries[0] == step else 0
        self._tries = (step, number)
        name = f"{step}/{number}"
        if number == 0:
            self._store.set(f"here/{step}/{self.rank}", json.dumps([self._life, joins]))
        if self.rank == 0:
            self._decide(step, name)
        lives = json.loads(self._of_first(f"members/{name}"))
        mine = [self.rank, self._life, joins]
        if mine not in lives:
            self._group = None  # the others go over to another
            return None
        members = tuple(rank for rank, _, _ in lives)
        if self._group is None or [life[:2] for life in lives] != self._lives:
            self._lives = [life[:2] for life in lives]
            self._group = None
            try:
                self._group = ProcessGroupGloo(
                    PrefixStore(f"group/{name}", self._store), members.index(self.rank), len(members),
                    timedelta(seconds=max(EXCHANGE, self._patience)),
                )  # fmt: skip
            except RuntimeError:  # one of them has gone since
                self.settle(name, done=False)
                return self.meet(step, joins)
        return Meeting(name, members, tuple(rank for rank, _, joined in lives if joined), self._group)

    def settle(self, name: str, *, done: bool) -> bool:
        """Whether what was exchanged counts, which it does if it came through at every member.

        Args:
            name: of the meeting.
            done: it came through here.
        """
        self._store.set(f"done/{name}/{self.rank}", str(int(done)))
        if self.rank == 0:
            there = self._await(f"done/{name}/{{}}", {life[0] for life in self._lives}, max(EXCHANGE, self._patience))
            lost = {life[0] for life in self._lives} - there
            counts = not lost and all(self._store.get(f"done/{name}/{rank}") == b"1" for rank in there)
            self._expected -= lost
            if lost:
                self._say(lost, f"lost in the exchange after step {name.partition('/')[0]}")
            self._store.set(f"counts/{name}", str(int(counts)))
        counts = self._of_first(f"counts/{name}") == b"1"
        if not counts:
            self._group = None
        return counts

    def _decide(self, step: int, name: str) -> None:
        """Publish who takes part."""
        for rank, before in enumerate(self._announced):
            self._announced[rank] = self._store.add(f"announced/{rank}", 0)
            if self._announced[rank] > before:
                self._expected.add(rank)
        first = name.endswith("/0")
        there = self._await(f"here/{step}/{{}}", self._expected, self._patience) if first else set(self._expected)
        missing = self._expected - there
        if missing:
            self._say(missing, f"left out of the average after step {step}: not there after {self._patience:g} s")
        lives = [[rank, *json.loads(self._store.get(f"here/{step}/{rank}"))] for rank in sorted(there)]
        joining = {rank for rank, _, joins in lives if joins}
        if joining and first:
            self._say(joining, f"back with the weights of all after step {step}")
        self._expected = there
        self._store.set("now", str(step))
        self._store.set(f"members/{name}", json.dumps(lives))

    def _await(self, key: str, ranks: set[int], seconds: float) -> set[int]:
        """Those of all ranks that have set a key, once all of some have, or so many seconds are over."""
        until = time.monotonic() + seconds
        while True:
            self._store.add("moves", 1)
            there = {rank for rank in range(len(self._announced)) if self._store.check([key.format(rank)])}
            if ranks <= there or time.monotonic() > until:
                return there
            time.sleep(PAUSE)

    def _of_first(self, key: str) -> bytes:
        """Waits for a key that the first island sets, as long as it moves: takes steps, or waits for others itself.

        Raises:
            FirstIslandLost: its process answers, but has not moved for as long as the longest step took here and the
                patience; or its store has gone.
        """
        limit = self._longest + max(EXCHANGE, self._patience)
        before, waited, silent = 0, 0.0, 0.0
        with _named(FIRST):
            while not self._store.check([key]):
                pause = min(max(PAUSE, waited / 10), PULSE)
                time.sleep(pause)
                moves = self._store.add("moves", 0)
                waited, silent = waited + pause, silent + pause if moves == before else 0.0
                before = moves
                if silent > limit:
                    raise FirstIslandLost(
                        f"diloco: the first island (rank 0) answers, but has stood still for {silent:.0f} s",
                        action="look at what it waits for; raise scale.strategy.patience if its steps take so long. "
                        "If the run does not begin again by itself, continue from the newest checkpoint with ft "
                        "resume",
                    )
            return bytes(self._store.get(key))

    def _say(self, ranks: set[int], what: str) -> None:
        numbers = ", ".join(map(str, sorted(ranks)))
        print(f"diloco: island {numbers} is {what}", file=sys.stderr, flush=True)


def _apart(what: str) -> EngineError:
    return EngineError(f"diloco: islands that may leave do not {what} here", action="leave scale.strategy.patience out")


def read(store: Store, key: str, whose: str) -> bytes:
    """Waits for a key of the store and returns its value.

    Raises:
        EngineError: nobody has set it in time, or the store has gone with the first island, a `FirstIslandLost`.
    """
    with _named(whose):
        store.wait([key], TIMEOUT)
        return bytes(store.get(key))


@contextmanager
def _named(whose: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise (FirstIslandLost if whose == FIRST else EngineError)(
            f"diloco: {whose} does not answer: {str(error).splitlines()[0]}",
            action="look at the last messages of rank 0, then continue with ft resume",
        ) from error
