"""Wakes clients that wait in an event loop for a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Bells:
    """Wakes, by name, the coroutines that wait."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def bell(self, name: str) -> Iterator[asyncio.Event]:
        """An event that every `ring` of this name sets while the block runs."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._waiting.setdefault(name, []).append(entry)
        try:
            yield entry[1]
        finally:
            with self._lock:
                self._waiting[name].remove(entry)
                if not self._waiting[name]:
                    del self._waiting[name]

    def ring(self, name: str) -> None:
        """Wake all coroutines that wait under this name; any thread may call it."""
        with self._lock:
            for loop, event in self._waiting.get(name, []):
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)
