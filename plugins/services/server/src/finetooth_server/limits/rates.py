"""Rate limits with a burst, separately for each name.

The generic cell rate algorithm (ITU-T Recommendation I.371, annex A, as a virtual scheduling algorithm): a token bucket
that keeps one number per name, the time when its bucket will be full again.
"""

from __future__ import annotations

import heapq
import ipaddress
import time
from collections.abc import Callable

NAMES = 4096
"""Most remembered names."""


DEBT = 10.0
"""Most seconds until there is a token again, even after many were taken in advance."""


class Rates:
    """Token buckets.

    Args:
        rate: tokens per second, for each name.
        burst: size of a bucket, at least one.
        clock: seconds.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._slack, self._clock = rate, (max(1.0, burst) - 1) / rate, clock
        self._full: dict[str, float] = {}

    def delay(self, name: str) -> float:
        """Seconds until there is a token for a name; takes none."""
        return max(0.0, self._full.get(name, 0.0) - self._slack - self._clock())

    def take(self, name: str) -> float:
        """Take a name's next token, possibly in advance; return the seconds until it comes."""
        delay = self.delay(name)
        now = self._clock()
        full = max(now, self._full.get(name, 0.0)) + 1 / self.rate
        self._full[name] = min(full, now + self._slack + DEBT + 1 / self.rate)
        if len(self._full) > NAMES:
            self._forget()
        return delay

    def _forget(self) -> None:
        """Drop names with full buckets; of too many others, those that will be full first."""
        now = self._clock()
        self._full = {name: full for name, full in self._full.items() if full > now}
        for name in heapq.nsmallest(len(self._full) - NAMES // 2, self._full, key=self._full.__getitem__):
            del self._full[name]

    def __len__(self) -> int:
        """Number of remembered names."""
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
