"""Requests that were refused before anybody knew who sent them: in the audit record the first of a cause has a line,
and those that follow it in the same minute are counted in another one."""

from __future__ import annotations

import threading
from collections import Counter

from finetooth_server.audit import Audit

CAUSES = 256
"""The most causes that are counted apart."""


class Refusals:
    """Counts refusals.

    Args:
        audit: the record that they go to.
    """

    def __init__(self, audit: Audit) -> None:
        self._audit, self._lock = audit, threading.Lock()
        self._more = Counter[tuple[str, str, str]]()  # of each cause that has its line: how often since

    def add(self, event: str, tenant: str, outcome: str) -> None:
        """A request was refused.

        Args:
            event: what was called.
            tenant: whose key it seemed to come with; empty if nobody's.
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
        """Write down what was counted, and start again at 0."""
        with self._lock:
            counts, self._more = self._more, Counter()
        for (event, tenant, outcome), count in counts.items():
            if count:
                self._audit.add(event, tenant=tenant, outcome=f"{outcome}, {count} more")
