"""What holds before a request is one: how many connections there may be, and how long one may stay silent."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from finetooth_wire.listening import SLOWEST
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from finetooth_server.limits.admission import HELD
from finetooth_server.limits.rates import Rates, network_of

MOST = 2048
"""Connections at once, unless the system allows the process fewer files."""

RESERVED = 128
"""Files that the process keeps for itself: its database, weights, its record."""

AT_ONCE = 128
"""Connections that are taken in one go, before any of them can be closed; the others wait at the system."""

NOISE = 5.0
"""Requests from one address that are not HTTP and are answered at once in a second; further answers are delayed."""

EVICTED = 32
"""Connections that are closed at a time when there are too many."""


def most_connections() -> int:
    """How many connections there may be here."""
    try:
        import resource
    except ImportError:  # Windows has no such bound
        return MOST
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(MOST, files - RESERVED - AT_ONCE)) if files != resource.RLIM_INFINITY else MOST


class BoundedConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, which closes a connection that sends no whole head of a request in time.

    When there are too many, those go first that have been silent for longest: who opens connections and says nothing
    keeps nobody out. If all of them are at work, the new one is closed. A client that comes back on the same
    connection is held to uvicorn's own `timeout_keep_alive`.
    """

    most = most_connections()
    _numbers = itertools.count()
    _noise = Rates(NOISE, 4 * NOISE)

    def connection_made(self, transport: Any) -> None:
        """Count the connection, and begin to wait for its first request."""
        super().connection_made(transport)
        self._number = next(self._numbers)
        if len(self.connections) > self.most and not self._evict():
            transport.close()
            return
        self._silent = asyncio.get_running_loop().call_later(SLOWEST, self._close_if_silent)

    def _evict(self) -> bool:
        """Close those that have been silent for longest; whether there was any besides this one."""
        silent = [connection for connection in self.connections if connection is not self and connection.silent]
        for connection in heapq.nsmallest(EVICTED, silent, key=lambda connection: connection._number):
            connection.transport.abort()  # closed at once: what it might still want to send has no reader
        return bool(silent)

    @property
    def silent(self) -> bool:
        """No whole head of a request has come so far."""
        return self.cycle is None and self.transport is not None and not self.transport.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        silent = getattr(self, "_silent", None)
        if silent is not None:
            silent.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP; a client that sends many of them waits for the answers."""
        name = network_of(self.client[0]) if self.client else ""
        if not self._noise.take(name):
            super().send_400_response(msg)
            return
        self.flow.pause_reading()
        asyncio.get_running_loop().call_later(HELD, self._answer_noise, msg)

    def _answer_noise(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _close_if_silent(self) -> None:
        if self.silent:
            self.transport.close()


def telling_server(config: uvicorn.Config, say: Callable[[], None]) -> uvicorn.Server:
    """A server that speaks once it listens, and not before."""

    class Telling(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                say()

    return Telling(config)
