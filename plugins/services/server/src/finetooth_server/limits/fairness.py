"""Whose turn it is, by what everybody had: start-time fair queueing on a clock that counts what was given out.

Goyal, Vin and Cheng, 1996, "Start-time Fair Queueing". Each name has an account of what it was given (seconds of
computing, on the server); the one with the least is next. The clock stands at the least account of those who wait. Who
comes, or comes back after having wanted nothing, begins where the clock is: nothing is saved up by being idle, nobody
who comes overtakes one who waits there, and before it each of the others has one turn at most.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


class Shares(Generic[Name]):
    """Equal shares for those who want something at the moment."""

    def __init__(self) -> None:
        self._used: dict[Name, float] = {}
        self._since: dict[Name, int] = {}  # the turn at which it came, or was served last
        self._wanting: frozenset[Name] = frozenset()
        self._clock = 0.0
        self._turns = 0

    def next(self, wanting: Iterable[Name]) -> Name:
        """Who of those that want something is next: the one that had least, among equals the one that waits for
        longest."""
        names = dict.fromkeys(wanting)
        waited = [self._used[name] for name in names if name in self._wanting]
        self._clock = max(self._clock, min(waited, default=0.0))
        for name in names:
            if name not in self._wanting:
                self._used[name] = max(self._used.get(name, 0.0), self._clock)
                self._since[name] = (
                    self._turns - 1
                )  # it came while the last one had its turn, before that one wants again
        self._wanting = frozenset(names)
        chosen = min(names, key=lambda name: (self._used[name], self._since[name]))
        self._clock = max(self._clock, self._used[chosen])
        self._turns += 1
        self._since[chosen] = self._turns
        for name in [name for name, used in self._used.items() if name not in names and used <= self._clock]:
            del self._used[name]  # it would begin at the clock again
            self._since.pop(name, None)
        return chosen

    def charge(self, name: Name, had: float) -> None:
        """It had so much."""
        self._used[name] = self._used.get(name, self._clock) + had

    def __len__(self) -> int:
        """Accounts that are kept."""
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
        """A flow of a tenant's had so much.

        Args:
            stands_for: so many that would each have a share within the tenant's.
        """
        self._tenants.charge(tenant, had)
        self._flows.setdefault(tenant, Shares()).charge(flow, had / stands_for)
