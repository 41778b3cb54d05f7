"""Limits connections: how many there may be, and how long one may be silent."""

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
"""Files reserved for the process: database, weights, audit record."""

AT_ONCE = 128
"""Connections accepted at once, before any can be closed; others wait in the system's queue."""

NOISE = 5.0
"""Invalid HTTP requests per second and address that are answered at once; further answers are delayed."""

EVICTED = 32
"""Connections closed at once when there are too many."""


def most_connections() -> int:
    """Most connections on this system."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(MOST, files - RESERVED - AT_ONCE)) if files != resource.RLIM_INFINITY else MOST


class BoundedConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, which closes a connection that does not send a complete request head in time.

    With too many connections, it closes those silent for longest, so idle ones keep nobody out. If all are active, it
    closes the new one. uvicorn's own `timeout_keep_alive` applies to reused connections.
    """

    most = most_connections()
    _numbers = itertools.count()
    _noise = Rates(NOISE, 4 * NOISE)

    def connection_made(self, transport: Any) -> None:
        """Count the connection, and wait for its first request."""
        super().connection_made(transport)
        self._number = next(self._numbers)
        if len(self.connections) > self.most and not self._evict():
            transport.close()
            return
        self._silent = asyncio.get_running_loop().call_later(SLOWEST, self._close_if_silent)

    def _evict(self) -> bool:
        """Close those silent for longest; return whether there was any besides this one."""
        silent = [connection for connection in self.connections if connection is not self and connection.silent]
        for connection in heapq.nsmallest(EVICTED, silent, key=lambda connection: connection._number):
            connection.transport.abort()  # closed at once: its unsent data has no reader
        return bool(silent)

    @property
    def silent(self) -> bool:
        """Whether no complete request head has come so far."""
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
    """A server that reports once it listens."""

    class Telling(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                say()

    return Telling(config)
