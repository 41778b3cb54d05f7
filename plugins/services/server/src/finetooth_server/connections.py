"""What holds before a request is one: how many connections there may be, and how long one may stay silent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from finetooth_server.guard import SLOWEST

MOST = 2048
"""Connections at once, unless the system allows the process fewer files."""

RESERVED = 128
"""Files that the process keeps for itself: its database, weights, its record."""


def most_connections() -> int:
    """How many connections there may be here."""
    try:
        import resource
    except ImportError:  # Windows has no such bound
        return MOST
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(MOST, files - RESERVED)) if files != resource.RLIM_INFINITY else MOST


class BoundedConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, which closes a connection that sends no whole head of a request in time, and one too many.

    A client that comes back on the same connection is held to uvicorn's own `timeout_keep_alive`.
    """

    most = most_connections()

    def connection_made(self, transport: Any) -> None:
        """Count the connection, and begin to wait for its first request."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.close()
            return
        self._silent = asyncio.get_running_loop().call_later(SLOWEST, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        silent = getattr(self, "_silent", None)
        if silent is not None:
            silent.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None and self.transport is not None and not self.transport.is_closing():
            self.transport.close()


def telling_server(config: uvicorn.Config, say: Callable[[], None]) -> uvicorn.Server:
    """A server that speaks once it listens, and not before."""

    class Telling(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                say()

    return Telling(config)
