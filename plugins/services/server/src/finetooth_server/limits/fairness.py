"""Chooses the next turn: start-time fair queueing on a clock that counts given service.

Goyal, Vin and Cheng, 1996, "Start-time Fair Queueing". Each name has an account of its service (seconds of computing,
on the server); the one with the least is next. The clock is the least account of those who wait. A newcomer, or a name
that was idle, starts at the clock: idleness saves up nothing, a newcomer overtakes no one who waits there, and each of
the others has at most one turn before it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


class Shares(Generic[Name]):
    """Equal shares for those who currently wait."""

    def __init__(self) -> None:
        self._used: dict[Name, float] = {}
        self._since: dict[Name, int] = {}  # the turn of its arrival or last service
        self._wanting: frozenset[Name] = frozenset()
        self._clock = 0.0
        self._turns = 0

    def next(self, wanting: Iterable[Name]) -> Name:
        """The next of those who wait: the one with the least service, among equals the one that waits longest."""
        names = dict.fromkeys(wanting)
        waited = [self._used[name] for name in names if name in self._wanting]
        self._clock = max(self._clock, min(waited, default=0.0))
        for name in names:
            if name not in self._wanting:
                self._used[name] = max(self._used.get(name, 0.0), self._clock)
                self._since[name] = self._turns - 1  # it came during the last one's turn, before that one waits again
        self._wanting = frozenset(names)
        chosen = min(names, key=lambda name: (self._used[name], self._since[name]))
        self._clock = max(self._clock, self._used[chosen])
        self._turns += 1
        self._since[chosen] = self._turns
        for name in [name for name, used in self._used.items() if name not in names and used <= self._clock]:
            del self._used[name]  # it would start at the clock again
            self._since.pop(name, None)
        return chosen

    def charge(self, name: Name, had: float) -> None:
        """Charge it."""
        self._used[name] = self._used.get(name, self._clock) + had

    def __len__(self) -> int:
        """Number of accounts."""
        return len(self._used)


class FairTurns:
    """Shares of tenants, and within each tenant's those of its models and of its sampling."""

    def __init__(self) -> None:
        self._tenants: Shares[str] = Shares()
        self._flows: dict[str, Shares[str]] = {}

    def next(self, wanting: Mapping[str, Iterable[str]]) -> tuple[str, str]:
        """The tenant and the flow that is next.

        Args:
            wanting: flows by tenant; neither is empty.
        """
        tenant = self._tenants.next(wanting)
        for absent in self._flows.keys() - wanting.keys():
            del self._flows[absent]
        return tenant, self._flows.setdefault(tenant, Shares()).next(wanting[tenant])

    def charge(self, tenant: str, flow: str, had: float, *, stands_for: int = 1) -> None:
        """Charge a tenant's flow.

        Args:
            stands_for: number of shares within the tenant's.
        """
        self._tenants.charge(tenant, had)
        self._flows.setdefault(tenant, Shares()).charge(flow, had / stands_for)
