"""How often something may be: so many at once, then so many a second, for each name apart.

The generic cell rate algorithm (ITU-T Recommendation I.371, annex A, as a virtual scheduling algorithm), which is a
token bucket that keeps one number for each name: when its bucket will be full again.
"""

from __future__ import annotations

import heapq
import ipaddress
import time
from collections.abc import Callable

NAMES = 4096
"""The most names that are remembered."""


DEBT = 10.0
"""Seconds after which there is a token again, however many were taken before they came."""


class Rates:
    """Token buckets.

    Args:
        rate: tokens that come in a second, for each name.
        burst: tokens that a bucket holds, at least one.
        clock: seconds.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._slack, self._clock = rate, (max(1.0, burst) - 1) / rate, clock
        self._full: dict[str, float] = {}

    def delay(self, name: str) -> float:
        """Seconds until there is a token for a name; takes none."""
        return max(0.0, self._full.get(name, 0.0) - self._slack - self._clock())

    def take(self, name: str) -> float:
        """Take a name's next token, also one that has yet to come; seconds until it does."""
        delay = self.delay(name)
        now = self._clock()
        full = max(now, self._full.get(name, 0.0)) + 1 / self.rate
        self._full[name] = min(full, now + self._slack + DEBT + 1 / self.rate)
        if len(self._full) > NAMES:
            self._forget()
        return delay

    def _forget(self) -> None:
        """Forget names whose buckets are full; of too many others, those that will be full first."""
        now = self._clock()
        self._full = {name: full for name, full in self._full.items() if full > now}
        for name in heapq.nsmallest(len(self._full) - NAMES // 2, self._full, key=self._full.__getitem__):
            del self._full[name]

    def __len__(self) -> int:
        """Names that are remembered."""
        return len(self._full)


def network_of(host: str) -> str:
    """The name for an address: of IPv6 its first 64 bits, since the owner of one such address has all of them."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((address, 64), strict=False))
    return host
