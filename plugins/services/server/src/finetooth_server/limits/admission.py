"""Who may begin a request, before anything is looked up or read for it.

A request is cheap for its sender and not for the server: a few milliseconds of the one interpreter in which others'
steps are computed as well. So while others are at work a tenant's requests begin at a rate (`Limits.requests`): what
comes faster waits for its turn, what would wait for long is refused with 429 and the seconds after which to come again.
Who has the server alone is not held up. Requests without a valid key have a rate for each address (`Limits.strangers`),
which those with one do not share: a key that was valid before is known by its hash, without a look into the database.
What anybody may ask is answered, for each address at a rate (`ASKED`).
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
"""Seconds whose requests may come at once."""

PATIENCE = 5.0
"""Seconds for which a request waits for its turn."""

RECENT = 2.0
"""Seconds after its last request for which a tenant counts as being at work."""

HELD = 1.0
"""Seconds for which the answer to a stranger who comes too often is held back: while it waits it sends no more."""

HOLDS = 64
"""Answers that are held back for one address; more are given at once."""

ASKED = 20.0
"""Requests that need no key, such as for `/health`, that are answered at once in a second for one address; others wait
for their turn."""

LONGEST = 0.5
"""Seconds for which they wait at most: who looks after a server has to learn in time that it works."""

KEYS = 4096
"""Keys that are remembered."""


class Admission:
    """Rates of tenants and of addresses. It is used in the event loop alone.

    Args:
        limits: `requests`, `strangers` and `connections`.
        most: connections that there may be; a tenant has two thirds of them at most.
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
        self._seen: OrderedDict[str, float] = OrderedDict()  # the tenant that came last stands last
        self._holding = Counter[str]()

    # --- tenants ------------------------------------------------------------------------------------------------------

    def tenant(self, key: str) -> str:
        """Whose a key was when it was last valid; empty if it never was."""
        return self._known.get(_hash(key), "")

    def learn(self, key: str, tenant: str) -> None:
        """A key is valid."""
        self._known[_hash(key)] = tenant
        if len(self._known) > KEYS:
            self._known.popitem(last=False)

    def forget(self, key: str) -> None:
        """A key is not valid any more."""
        self._known.pop(_hash(key), None)

    def begin(self, tenant: str) -> float:
        """A request of a tenant's begins; `end` has to follow.

        Returns:
            the seconds for which it has to wait.

        Raises:
            TooMuch: too many of them are under way, or come in too short a time; nothing is to follow.
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
        """A request of a tenant's ended."""
        self._under_way[tenant] -= 1
        if not self._under_way[tenant]:
            del self._under_way[tenant]
        self._note(tenant)

    def others_at_work(self, tenant: str) -> bool:
        """Somebody else has a request under way, or had one lately."""
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
        """So many requests came under a name without a valid key that no more are looked at for now."""
        return self._strange.delay(name) > 0

    def note_stranger(self, name: str) -> None:
        """A request came without a valid key."""
        self._strange.take(name)

    def ask(self, name: str) -> float:
        """A request came that needs no key; the seconds for which its answer has to wait."""
        return min(self._open.take(name), LONGEST)

    async def refuse(self, name: str) -> TooMuch:
        """What a stranger is told who comes too often, after a while."""
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
