"""Threads that clients share for work outside the event loop: many requests of one client do not delay another's.

They run database transactions, one after the other; without sharing, a request behind 16 of another client would wait
for 16 commits.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any

CLIENT: ContextVar[str] = ContextVar("client", default="")
"""The client of the current task; empty: none."""

THREADS = 8
EACH = 2
"""Most threads for one client at a time."""


class FairThreads(ThreadPoolExecutor):
    """An event loop's executor. Clients take turns; each client's work runs in order."""

    def __init__(self, threads: int = THREADS, each: int = EACH) -> None:
        super().__init__(threads, thread_name_prefix="finetooth-request")
        self._each = each
        self._lock = threading.Lock()
        self._asked: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}  # the latest served is last
        self._at_work = Counter[str]()
        self._idle = 0  # work whose thread found all waiting clients at their limit

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor`; the client is the present task's."""
        future: Future[Any] = Future()
        with self._lock:
            self._asked.setdefault(CLIENT.get(), deque()).append((future, partial(fn, *args, **kwargs)))
        super().submit(self._work)
        return future

    def _work(self) -> None:
        """Run a piece of work, and postponed work after it."""
        again = True
        while again:
            with self._lock:
                client = next((name for name in self._asked if self._at_work[name] < self._each), None)
                if client is None:
                    self._idle += 1
                    return
                waiting = self._asked.pop(client)
                future, do = waiting.popleft()
                if waiting:
                    self._asked[client] = waiting
                self._at_work[client] += 1
            _do(future, do)
            with self._lock:
                self._at_work[client] -= 1
                if not self._at_work[client]:
                    del self._at_work[client]
                again = self._idle > 0
                self._idle -= again


def _do(future: Future[Any], do: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = do()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
