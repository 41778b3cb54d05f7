"""Calls that are executed part by part, in turns: a micro-batch of one, a token of another. Knows no log and no engine.

A call that begins keeps its place until it ends, since what it has computed so far is on its thread's stack and its
model's gradients. Calls of one queue follow each other; calls of different queues share nothing that one could change
for the other, so each computes what it would compute alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from finetooth_server.fairness import FairTurns
from finetooth_server.lanes import Lane, Lanes
from finetooth_server.settings import Limits

SAMPLING = "sampling"
"""Beside a tenant's models, what it samples from saved weights."""


WRITTEN = 2
"""So many tokens that are read or trained count as much as one that is written: those are computed many at a time (the
weight of Sheng et al., 2024, "Fairness in Serving Large Language Models", arXiv:2401.00588)."""

ROW = 32
"""Tokens for which a row counts beside its own: a part of a thousand rows of one token takes much longer than one of a
few long rows."""


class Sampled(Protocol):
    """What is sampled from saved weights, for all tenants together."""

    @property
    def tenants(self) -> Collection[str]:
        """Whose calls are being written."""
        ...

    def step(self) -> None:
        """Write a token for every call."""
        ...

    def spent(self) -> Mapping[str, int]:
        """Tokens by tenant since this was last asked."""
        ...


class Running:
    """A call that is executed.

    Attributes:
        call: its id; empty while nothing of it may be broken off.
        memory: bytes that it takes beside its model.
        stopped: it must not go on: it was cancelled, or the server ends.
        left: the server ends, and the next one executes it.
        rested: seconds for which others had their turns, by a clock that only goes on.
        parts: that have begun.
    """

    def __init__(self, queue: str, tenant: str, memory: int, lane: Lane) -> None:
        self.queue, self.tenant, self.memory, self.lane = queue, tenant, memory, lane
        self.call = ""
        self.stopped = self.left = False
        self.rested = 0.0
        self.parts = 0
        self._spent = self._coming = self._estimated = 0
        self._told = False
        self._weight = 1.0

    def weigh(self, rows: int, tokens: int) -> None:
        """Its parts have so many rows, of so many tokens in all."""
        self._weight = 1.0 + ROW * rows / max(1, tokens)

    def spend(self, tokens: int) -> None:
        """It has, or is about to have, so many tokens."""
        self._spent += tokens

    def estimate(self, tokens: int) -> None:
        """So many, as long as nobody tells how many a part has."""
        self._estimated = tokens

    def write(self) -> None:
        """It wrote a token."""
        self._told = True
        self._spent += WRITTEN

    def part(self, tokens: int, quantum: int) -> None:
        """Its next part begins, and the one before has ended.

        Args:
            tokens: of the part that comes; 0 is unknown.
            quantum: what a part counts for at most where that is unknown.
        """
        self.parts += 1
        self._spent += self._coming
        self._told = self._told or tokens > 0
        self._coming = math.ceil(tokens * self._weight) if self._told else min(quantum, self._estimated)
        self._estimated -= 0 if self._told else self._coming

    def take_spent(self, *, ended: bool) -> int:
        """Tokens since this was last asked; at the end with what is left."""
        if ended:
            self._spent += self._coming + (0 if self._told else self._estimated)
        found, self._spent = self._spent, 0
        return found


class Scheduler:
    """Only the writer's thread calls it, but for `asked`.

    Args:
        execute: does the call that is due in the queue of a `Running`; it is called in a thread of its own.
        sampled: what is sampled meanwhile.
        busy: names of queues with a call that is executed; kept up to date here.
    """

    def __init__(
        self, limits: Limits, execute: Callable[[Running], None], sampled: Sampled, busy: set[str] | None = None
    ) -> None:
        self._limits, self._execute, self._sampled = limits, execute, sampled
        self._busy = set() if busy is None else busy
        self._ready: dict[str, tuple[str, int]] = {}
        self._running: dict[str, Running] = {}
        self._at_work: Running | None = None
        self._lanes, self._fair = Lanes(), FairTurns()

    def __len__(self) -> int:
        """Queues with a call that is executed or may be."""
        return len(self._ready) + len(self._running)

    def __contains__(self, queue: str) -> bool:
        return queue in self._ready or queue in self._running

    def running(self, queue: str) -> bool:
        """A call of this queue is executed."""
        return queue in self._running

    def offer(self, queue: str, due: tuple[str, int] | None) -> None:
        """What is due in a queue: its tenant, and bytes that it takes; None is nothing."""
        self._ready.pop(queue, None)
        if due is not None:
            self._ready[queue] = due

    def stop(self, calls: Collection[str]) -> None:
        """Break these calls off at their next part."""
        for running in self._running.values():
            running.stopped = running.stopped or running.call in calls

    def turn(self) -> Running | None:
        """Let whoever is next have a part of its call; the call if that was its end."""
        wanting: dict[str, list[str]] = {}
        for queue, running in self._running.items():
            wanting.setdefault(running.tenant, []).append(queue)
        for queue, (tenant, memory) in self._ready.items():
            if self._has_place(tenant, memory):
                wanting.setdefault(tenant, []).append(queue)
        for tenant in self._sampled.tenants:
            wanting.setdefault(tenant, []).append(SAMPLING)
        if not wanting:
            return None
        _, flow = self._fair.next(wanting)
        if flow != SAMPLING:
            return self._go_on(flow)
        self._sampled.step()
        for tenant, tokens in self._sampled.spent().items():
            self._fair.charge(tenant, SAMPLING, tokens)
        return None

    def _has_place(self, tenant: str, memory: int) -> bool:
        """Whether a call may begin beside those that are executed. Each keeps its model in memory; half of the places
        are for tenants that have none."""
        if not self._running:
            return True
        has = any(running.tenant == tenant for running in self._running.values())
        places = self._limits.live // 2 if has else self._limits.live
        held = sum(running.memory for running in self._running.values())
        return len(self._running) < places and held + memory <= self._limits.device_memory

    def _go_on(self, queue: str) -> Running | None:
        running = self._running.get(queue)
        if running is None:
            running = Running(queue, *self._ready.pop(queue), self._lanes.take())
            self._running[queue] = running
            self._busy.add(queue)
            running.lane.begin(self._begun(running))
        self._at_work = running
        try:
            ended = running.lane.go_on()
        finally:
            self._at_work = None
        self._fair.charge(running.tenant, queue, running.take_spent(ended=ended))
        if not ended:
            return None
        del self._running[queue]
        self._busy.discard(queue)
        self._lanes.give_back(running.lane)
        return running

    def _begun(self, running: Running) -> Callable[[], None]:
        return lambda: self._execute(running)

    def asked(self, tokens: int) -> bool:
        """Asked by an engine before each part of a call, from the call's own thread: let others have their turn. True
        if the call is to be broken off.

        Args:
            tokens: of the part that comes; 0 is unknown.
        """
        running = self._at_work
        if running is None or not running.call:
            return False  # nobody's call: a snapshot, or a sampler's
        first = not running.parts
        running.part(tokens, self._limits.quantum)
        if first:  # the turn in which it began is the one for its first part
            return running.stopped
        begun = time.monotonic()
        running.lane.rest()
        running.rested += time.monotonic() - begun
        return running.stopped

    def leave(self) -> Iterable[Running]:
        """Break off what is executed, and leave it to the next server. What cannot be broken off is finished."""
        ended = []
        for queue, running in list(self._running.items()):
            running.stopped = running.left = True
            while queue in self._running:
                if (one := self._go_on(queue)) is not None:
                    ended.append(one)
        self._lanes.close()
        return ended
