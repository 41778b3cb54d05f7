"""Admits requests, before anything is read for them.

A request costs its sender little, and the server a few milliseconds of the interpreter that also computes others'
steps. So while others are active, a tenant's requests have a rate limit (`Limits.requests`): faster ones wait, and
those that would wait long get 429 with the seconds to wait. A tenant alone on the server is not limited. Requests
without a valid key have a separate rate limit for each address (`Limits.strangers`): a previously valid key is known by
its hash, without reading the database. Requests that need no key have a rate limit for each address too (`ASKED`).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from finetooth_server.faults import TooMuch
from finetooth_server.limits.rates import Rates
from finetooth_server.settings import Limits

BURST = 1.0
"""Burst of the rate, in seconds."""

PATIENCE = 5.0
"""Most seconds that a request waits for its turn."""

RECENT = 2.0
"""Seconds after its last request for which a tenant counts as active."""

HELD = 1.0
"""Seconds of delay of the answer to an address with too many invalid requests: while it waits it sends no more."""

HOLDS = 64
"""Most delayed answers per address; further ones are sent at once."""

ASKED = 20.0
"""Requests per second and address that need no key, such as `/health`, and are answered at once; others wait."""

LONGEST = 0.5
"""Most seconds that they wait: monitors need an answer in time."""

KEYS = 4096
"""Most cached keys."""


class Admission:
    """Rates of tenants and of addresses. Only the event loop uses it.

    Args:
        limits: `requests`, `strangers` and `connections`.
        most: connections at once; a tenant has at most two thirds of them.
        clock: seconds.
    """

    def __init__(self, limits: Limits, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turns = Rates(limits.requests, BURST * limits.requests, clock)
        self._strange = Rates(limits.strangers, 4 * BURST * limits.strangers, clock)
        self._open = Rates(ASKED, ASKED, clock)
        self._most = min(limits.connections, max(1, 2 * most // 3))
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._under_way = Counter[str]()
        self._seen: OrderedDict[str, float] = OrderedDict()  # the latest tenant is last
        self._holding = Counter[str]()

    # --- tenants ------------------------------------------------------------------------------------------------------

    def tenant(self, key: str) -> str:
        """The tenant of a key when it was last valid; empty if it never was."""
        return self._known.get(_hash(key), "")

    def learn(self, key: str, tenant: str) -> None:
        """Note that a key is valid."""
        self._known[_hash(key)] = tenant
        if len(self._known) > KEYS:
            self._known.popitem(last=False)

    def forget(self, key: str) -> None:
        """Note that a key is no longer valid."""
        self._known.pop(_hash(key), None)

    def begin(self, tenant: str) -> float:
        """Begin a tenant's request; `end` must follow.

        Returns:
            the seconds to wait.

        Raises:
            TooMuch: too many are running, or came in too short a time; then no `end` follows.
        """
        count = self._under_way[tenant]
        if count >= self._most:
            raise TooMuch(f"{count} requests are under way", action="wait until some are answered")
        delay = 0.0
        if self.others_at_work(tenant):
            if (delay := self._turns.delay(tenant)) > PATIENCE:
                more = f"more than {self._turns.rate:g} requests a second while others are at work"
                raise TooMuch(more, action="send less at once", after=math.ceil(delay))
            delay = self._turns.take(tenant)
        self._under_way[tenant] += 1
        self._note(tenant)
        return delay

    def end(self, tenant: str) -> None:
        """End a tenant's request."""
        self._under_way[tenant] -= 1
        if not self._under_way[tenant]:
            del self._under_way[tenant]
        self._note(tenant)

    def others_at_work(self, tenant: str) -> bool:
        """Whether another tenant has a request, or had one recently."""
        if len(self._under_way) > (tenant in self._under_way):
            return True
        other = next((name for name in reversed(self._seen) if name != tenant), None)
        return other is not None and self._clock() - self._seen[other] < RECENT

    def _note(self, tenant: str) -> None:
        self._seen[tenant] = self._clock()
        self._seen.move_to_end(tenant)
        if len(self._seen) > KEYS:
            self._seen.popitem(last=False)

    # --- strangers ----------------------------------------------------------------------------------------------------

    def suspects(self, name: str) -> bool:
        """Whether too many requests without a valid key came from an address."""
        return self._strange.delay(name) > 0

    def note_stranger(self, name: str) -> None:
        """Note a request without a valid key."""
        self._strange.take(name)

    def ask(self, name: str) -> float:
        """Note a request that needs no key; return the seconds by which to delay its answer."""
        return min(self._open.take(name), LONGEST)

    async def refuse(self, name: str) -> TooMuch:
        """The delayed answer to an address with too many invalid requests."""
        delay = self._strange.delay(name)
        if self._holding[name] < HOLDS:
            self._holding[name] += 1
            try:
                await asyncio.sleep(HELD)
            finally:
                self._holding[name] -= 1
                if not self._holding[name]:
                    del self._holding[name]
        return TooMuch("too many requests without a valid API key", action="send a valid key", after=math.ceil(delay))


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("latin-1", "replace")).digest()
