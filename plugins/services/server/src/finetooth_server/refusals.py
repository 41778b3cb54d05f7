"""Requests refused without a known sender: in the audit record the first of a cause has a line, and later ones in the
same minute are counted in another line."""

from __future__ import annotations

import threading
from collections import Counter

from finetooth_server.audit import Audit

CAUSES = 256
"""Most causes with separate counts."""


class Refusals:
    """Counts refusals.

    Args:
        audit: the record for them.
    """

    def __init__(self, audit: Audit) -> None:
        self._audit, self._lock = audit, threading.Lock()
        self._more = Counter[tuple[str, str, str]]()  # of each cause that has its line: how often since

    def add(self, event: str, tenant: str, outcome: str) -> None:
        """Note a refused request.

        Args:
            event: the call.
            tenant: of the apparent key; empty if unknown.
            outcome: HTTP status.
        """
        cause = event, tenant, outcome
        with self._lock:
            if cause in self._more:
                self._more[cause] += 1
                return
            full = len(self._more) >= CAUSES
        if full:
            self.flush()
        with self._lock:
            self._more[cause] = 0
        self._audit.add(event, tenant=tenant, outcome=outcome)

    def flush(self) -> None:
        """Write the counts and reset them."""
        with self._lock:
            counts, self._more = self._more, Counter()
        for (event, tenant, outcome), count in counts.items():
            if count:
                self._audit.add(event, tenant=tenant, outcome=f"{outcome}, {count} more")
