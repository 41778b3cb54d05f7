"""Calls that are executed part by part, in turns: a micro-batch of one, a token of another. Knows no log and no engine.

A call that begins keeps its place until it ends, since what it has computed so far is on its thread's stack and its
model's gradients. Calls of one queue follow each other; calls of different queues share nothing that one could change
for the other, so each computes what it would compute alone.

A call that has all that it needs of its engine, and files to write, steps aside: others have their turns meanwhile, and
its queue waits for it as for any call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from finetooth_server.batches.lanes import Lane, Lanes
from finetooth_server.limits.fairness import FairTurns
from finetooth_server.settings import Limits

AWAITED = 0.03
"""Seconds for which a tenant is waited for whose call has just ended, where it would have the next turn."""

IN_VAIN = 16
"""Ends of calls after which a tenant is waited for again, at most: none where it was in vain once, one where it was
twice in a row, and then twice as many each time."""

WAITING = "waiting"
"""What a tenant is given while it is waited for."""

OUTSIDE = "outside"
"""The flow of what the server does for a tenant outside of turns. A tenant's other flows are its models."""

SAMPLING = "sampling"
"""The flow of what a tenant samples from saved weights. Its other flows are its models."""


class Sampled(Protocol):
    """What is sampled from saved weights, for all tenants together."""

    @property
    def tenants(self) -> Collection[str]:
        """Whose calls are being written."""
        ...

    @property
    def calls(self) -> Mapping[str, int]:
        """How many calls of each tenant are being written."""
        ...

    def step(self) -> None:
        """Write a token for every call."""
        ...

    def spent(self) -> Mapping[str, int]:
        """Tokens by tenant, read and written, since this was last asked: their shares of the steps since then."""
        ...


class Running:
    """A call that is executed.

    Attributes:
        call: its id; empty while nothing of it may be broken off.
        memory: bytes that it takes in addition to its model.
        stopped: it must stop: it was cancelled, or the server ends.
        left: the server ends, and the next one executes it.
        rested: seconds for which others had their turns, by a monotonic clock.
        begun: its first part has.
        weight: how many times what its turns take is charged.
        aside: it works in the background and wants no turn.
    """

    def __init__(self, queue: str, tenant: str, memory: int, lane: Lane) -> None:
        self.queue, self.tenant, self.memory, self.lane = queue, tenant, memory, lane
        self.call = ""
        self.stopped = self.left = False
        self.rested = 0.0
        self.begun = self.aside = False
        self.weight = 1.0


class Scheduler:
    """Only the writer's thread calls it, but for `asked`, `step_aside` and `come_back`.

    Args:
        execute: does the call that is due in the queue of a `Running`; it is called in a thread of its own.
        sampled: what is sampled meanwhile.
        busy: names of queues with a call that is executed; kept up to date here.
        clock: seconds, for what a turn takes.
        pause: waits for so many seconds, or until something comes; None never does.
        ring: told that a call wants a turn which did not.
    """

    def __init__(
        self,
        limits: Limits,
        execute: Callable[[Running], None],
        sampled: Sampled,
        busy: set[str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        pause: Callable[[float], None] | None = None,
        ring: Callable[[], None] = lambda: None,
    ) -> None:
        self._limits, self._execute, self._sampled = limits, execute, sampled
        self._busy = set() if busy is None else busy
        self._ready: dict[str, tuple[str, int]] = {}
        self._running: dict[str, Running] = {}
        self._at_work: Running | None = None
        self._lanes, self._fair, self._clock = Lanes(), FairTurns(), clock
        self._pause, self._ring = pause, ring
        self._asides: dict[str, threading.Lock] = {}  # of tenants with a call that stepped aside
        self._awaited: dict[str, float] = {}  # tenants whose call has just ended, and until when they are waited for
        self._in_vain: dict[str, tuple[int, int]] = {}  # who did not come: ends that are left, and how often in a row

    def __len__(self) -> int:
        """Queues with a call that is executed or may be."""
        return len(self._ready) + len(self._running)

    def __contains__(self, queue: str) -> bool:
        return queue in self._ready or queue in self._running

    @property
    def wants(self) -> bool:
        """Somebody wants a turn."""
        return bool(self._wanting())

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
        """Let the next tenant have a part of its call; the call if that was its end."""
        wanting = self._wanting()
        if not wanting:
            self._awaited.clear()
            return None
        self._expire(wanting)
        awaited = {name: [WAITING] for name in self._awaited}
        tenant, flow = self._fair.next({**wanting, **awaited})
        if flow == WAITING:
            self._wait_for(tenant)
            return None
        if flow != SAMPLING:
            return self._go_on(flow)
        self._sample()
        return None

    def charge(self, tenant: str, seconds: float) -> None:
        """The server did something for a tenant outside of turns: letting go of its models, letting its samplings
        join."""
        self._fair.charge(tenant, OUTSIDE, seconds)

    def _wanting(self) -> dict[str, list[str]]:
        """Flows that want a turn, by tenant."""
        flows: dict[str, list[str]] = {}
        for queue, running in self._running.items():
            if not running.aside:
                flows.setdefault(running.tenant, []).append(queue)
        for queue, (tenant, memory) in self._ready.items():
            if self._has_place(tenant, memory):
                flows.setdefault(tenant, []).append(queue)
        for tenant in self._sampled.tenants:
            flows.setdefault(tenant, []).append(SAMPLING)
        return flows

    def _expire(self, wanting: Collection[str]) -> None:
        """See who came, and who did not."""
        for tenant, until in list(self._awaited.items()):
            late = until <= self._clock()
            if late or tenant in wanting:
                del self._awaited[tenant]
            if not late and tenant in wanting:
                self._in_vain.pop(tenant, None)
            elif late and tenant not in wanting:  # one that came late did so in somebody else's turn, and may be quick
                times = self._in_vain.get(tenant, (0, 0))[1] + 1
                self._in_vain[tenant] = min(IN_VAIN, 2**times // 4), min(times, IN_VAIN)

    def _await(self, tenant: str) -> None:
        """A call of a tenant's has ended. One that asks for one thing after the other is away for a moment only, and
        would find a turn of somebody else begun each time that it comes (Iyer and Druschel, 2001, "Anticipatory
        scheduling"). It bears the time for which it is waited for."""
        if self._pause is None:
            return
        left, times = self._in_vain.get(tenant, (0, 0))
        if left:
            self._in_vain[tenant] = left - 1, times
        else:
            self._awaited[tenant] = self._clock() + AWAITED

    def _wait_for(self, tenant: str) -> None:
        assert self._pause is not None
        begun = self._clock()
        self._pause(self._awaited[tenant] - begun)
        self._fair.charge(tenant, WAITING, self._clock() - begun)

    def _sample(self) -> None:
        """A token for every call that is sampled. What it takes is borne by their tenants, by the tokens of each; among
        what is a tenant's own, a call counts as much as a model."""
        tenants, calls, begun = list(self._sampled.tenants), self._sampled.calls, self._clock()
        self._sampled.step()
        took, spent = self._clock() - begun, self._sampled.spent()
        whole = sum(spent.values())
        for tenant in spent or tenants:
            share = spent[tenant] / whole if whole else 1 / len(tenants)
            self._fair.charge(tenant, SAMPLING, took * share, stands_for=max(1, calls.get(tenant, 1)))
        for tenant in set(tenants) - set(self._sampled.tenants):
            self._await(tenant)

    def _has_place(self, tenant: str, memory: int) -> bool:
        """Whether a call may begin while others run. Each keeps its model in memory; half of the places
        are for tenants that have none."""
        if not self._running:
            return True
        has = any(running.tenant == tenant for running in self._running.values())
        places = self._limits.live // 2 if has else self._limits.live
        used = sum(running.memory for running in self._running.values())
        return len(self._running) < places and used + memory <= self._limits.device_memory

    def _go_on(self, queue: str) -> Running | None:
        running = self._running.get(queue)
        if running is None:
            running = Running(queue, *self._ready.pop(queue), self._lanes.take())
            self._running[queue] = running
            self._busy.add(queue)
            running.lane.begin(self._begun(running))
        self._at_work, begun = running, self._clock()
        try:
            ended = running.lane.go_on()
        finally:
            self._at_work = None
        self._fair.charge(running.tenant, queue, running.weight * (self._clock() - begun))
        if not ended:
            return None
        del self._running[queue]
        self._busy.discard(queue)
        self._lanes.give_back(running.lane)
        if not any(other.tenant == running.tenant for other in self._running.values()):
            self._asides.pop(running.tenant, None)
        self._await(running.tenant)
        return running

    def _begun(self, running: Running) -> Callable[[], None]:
        def work() -> None:
            try:
                self._execute(running)
            finally:
                self.come_back(running)  # a call ends in its turn

        return work

    def asked(self) -> bool:
        """Asked by an engine before each part of a call, from the call's own thread: let others have their turn. True
        if the call is to be broken off."""
        running = self._at_work
        if running is None or not running.call:
            return False  # nobody's call: a snapshot, or a sampler's
        if not running.begun:  # the turn in which it began is the one for its first part
            running.begun = True
            return running.stopped
        begun = time.monotonic()
        running.lane.rest()
        running.rested += time.monotonic() - begun
        return running.stopped

    def step_aside(self, running: Running) -> None:
        """Let others have their turns while a call does what needs no engine; from the call's own thread, in its turn.
        One call of a tenant at a time does so, the next one waits here: who saves many models at once has no more of
        the machine than who saves one."""
        alone = self._asides.setdefault(running.tenant, threading.Lock())
        running.rested -= time.monotonic()
        running.aside = True
        running.lane.step_aside()
        alone.acquire()

    def come_back(self, running: Running) -> None:
        """Wait for a turn again; nothing for a call that has not stepped aside."""
        if not running.aside:
            return
        self._asides[running.tenant].release()
        running.aside = False
        self._ring()
        running.lane.come_back()
        running.rested += time.monotonic()

    def leave(self) -> Iterable[Running]:
        """Break off what is executed, and leave it to the next server. What cannot be broken off is finished."""
        ended = []
        for queue, running in list(self._running.items()):
            running.stopped = running.left = True
            while queue in self._running:
                if (done := self._go_on(queue)) is not None:
                    ended.append(done)
        self._lanes.close()
        return ended
