"""Schedules calls in turns: a micro-batch of one, a token of another.

Independent of the log and of engines. A call keeps its place from its beginning to its end, since its state is on its
thread's stack and in its model's gradients. Calls of one queue run in order; calls of different queues share no mutable
state, so each gets the same result as alone.

A call that only has to write files steps aside: others run meanwhile, and its queue waits for it.
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
"""Seconds to wait for the next call of a tenant whose call has just ended and who would have the next turn."""

IN_VAIN = 16
"""Most calls of a tenant to skip before waiting for it again: the number doubles with each wait in vain."""

WAITING = "waiting"
"""Charged while the server waits for a tenant."""

OUTSIDE = "outside"
"""The flow of a tenant's work outside turns. A tenant's other flows are its models."""

SAMPLING = "sampling"
"""The flow of a tenant's sampling from saved weights. Its other flows are its models."""


class Sampled(Protocol):
    """Sampling from saved weights, for all tenants together."""

    @property
    def tenants(self) -> Collection[str]:
        """The tenants with running samplings."""
        ...

    @property
    def calls(self) -> Mapping[str, int]:
        """The number of running samplings of each tenant."""
        ...

    def step(self) -> None:
        """Sample a token for every call."""
        ...

    def spent(self) -> Mapping[str, int]:
        """Prompt and sampled tokens by tenant since the last call: their shares of the steps."""
        ...


class Running:
    """A running call.

    Attributes:
        call: its id; empty while it cannot be interrupted.
        memory: bytes in addition to its model.
        stopped: it must stop: it was cancelled, or the server ends.
        left: the server ends, and the next one executes it.
        rested: seconds of others' turns, by a monotonic clock.
        begun: its first part has begun.
        weight: factor on the charge of its turns.
        aside: it works in the background and needs no turn.
    """

    def __init__(self, queue: str, tenant: str, memory: int, lane: Lane) -> None:
        self.queue, self.tenant, self.memory, self.lane = queue, tenant, memory, lane
        self.call = ""
        self.stopped = self.left = False
        self.rested = 0.0
        self.begun = self.aside = False
        self.weight = 1.0


class Scheduler:
    """Schedules calls. Only the writer's thread calls it, except `asked`, `step_aside` and `come_back`.

    Args:
        execute: executes the next call of a `Running`'s queue, in a separate thread.
        sampled: the running samplings.
        busy: names of queues with a running call; updated here.
        clock: seconds, to time turns.
        pause: waits for some seconds, or until a call comes; None never waits.
        ring: called when a call wants a turn again.
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
        self._awaited: dict[str, float] = {}  # tenants whose call has just ended, and the end of the wait for them
        self._in_vain: dict[str, tuple[int, int]] = {}  # calls left to skip, and waits in vain in a row

    def __len__(self) -> int:
        """Queues with a running or waiting call."""
        return len(self._ready) + len(self._running)

    def __contains__(self, queue: str) -> bool:
        return queue in self._ready or queue in self._running

    @property
    def wants(self) -> bool:
        """Whether a call wants a turn."""
        return bool(self._wanting())

    def running(self, queue: str) -> bool:
        """Whether a call of this queue runs."""
        return queue in self._running

    def offer(self, queue: str, due: tuple[str, int] | None) -> None:
        """Set the next call of a queue: its tenant, and its bytes; None: no call."""
        self._ready.pop(queue, None)
        if due is not None:
            self._ready[queue] = due

    def stop(self, calls: Collection[str]) -> None:
        """Interrupt these calls at their next part."""
        for running in self._running.values():
            running.stopped = running.stopped or running.call in calls

    def turn(self) -> Running | None:
        """Run a part of the next tenant's call; return the call if it ended."""
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
        """Charge a tenant for work outside turns: closing its models, admitting its samplings."""
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
        """Update which awaited tenants came."""
        for tenant, until in list(self._awaited.items()):
            late = until <= self._clock()
            if late or tenant in wanting:
                del self._awaited[tenant]
            if not late and tenant in wanting:
                self._in_vain.pop(tenant, None)
            elif late and tenant not in wanting:  # a late one came during another's turn, and may be quick
                times = self._in_vain.get(tenant, (0, 0))[1] + 1
                self._in_vain[tenant] = min(IN_VAIN, 2**times // 4), min(times, IN_VAIN)

    def _await(self, tenant: str) -> None:
        """A tenant's call has ended. A client with one call after the other is away only briefly, and would find
        another's turn begun each time (Iyer and Druschel, 2001, "Anticipatory scheduling"). The wait is charged to its
        tenant."""
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
        """Sample a token for every call. The time is charged to the tenants by their tokens; within a tenant, a call
        counts as much as a model."""
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
        """Whether a call may begin while others run. Each keeps its model in memory; half of the places are for tenants
        without one."""
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
        """Yield to others; an engine calls this before each part of a call, in the call's thread. True if the call must
        stop."""
        running = self._at_work
        if running is None or not running.call:
            return False  # no call: a snapshot, or a sampler's
        if not running.begun:  # its first part belongs to the turn in which it began
            running.begun = True
            return running.stopped
        begun = time.monotonic()
        running.lane.rest()
        running.rested += time.monotonic() - begun
        return running.stopped

    def step_aside(self, running: Running) -> None:
        """Let others run while a call works without its engine; called in the call's thread, in its turn. Only one call
        of a tenant at a time does so, so saving many models at once takes no more of the machine than saving one."""
        alone = self._asides.setdefault(running.tenant, threading.Lock())
        running.rested -= time.monotonic()
        running.aside = True
        running.lane.step_aside()
        alone.acquire()

    def come_back(self, running: Running) -> None:
        """Wait for a turn again, if the call has stepped aside."""
        if not running.aside:
            return
        self._asides[running.tenant].release()
        running.aside = False
        self._ring()
        running.lane.come_back()
        running.rested += time.monotonic()

    def leave(self) -> Iterable[Running]:
        """Interrupt running calls, and leave them to the next server. Calls that cannot be interrupted finish."""
        ended = []
        for queue, running in list(self._running.items()):
            running.stopped = running.left = True
            while queue in self._running:
                if (done := self._go_on(queue)) is not None:
                    ended.append(done)
        self._lanes.close()
        return ended
