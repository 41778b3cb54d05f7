"""The server's process, if the sampler starts it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from finetooth_launching.server_process import ServerProcess

from finetooth_serversamplers.asking import Asking, Server, ServerGone

BETWEEN = 0.2
"""Seconds between two checks of the server."""


class Process:
    """Starts a server, and ends it with the run.

    Args:
        command: word by word; empty: the server is started elsewhere.
        ready: seconds for its start.
        wait: seconds to wait for a server that is started elsewhere; 0: it already runs.
        settings: further variables of its environment, unless set.
    """

    def __init__(
        self, command: Sequence[str], asking: Asking, ready: float, wait: float, settings: Mapping[str, str]
    ) -> None:
        self._command, self._asking, self._ready, self._wait = command, asking, ready, wait
        self._server = ServerProcess(command, "method.sampler.start", variables=settings)

    def begin(self) -> None:
        """Start the server, or wait for it.

        Raises:
            RecipeError: the command cannot be run.
            ServerGone: the server does not answer within the time.
        """
        if not self._command:
            wait, self._wait = self._wait, 0.0
            if wait:
                self._asking.within(wait).run(self._healthy)
            return
        if self._server.begin():
            self._asking.within(self._ready).run(self._healthy)

    async def _healthy(self, server: Server) -> None:
        while True:
            if ended := self._server.ended():
                raise ServerGone(f"{self._asking.called}: {ended} before it answered", action="read its output above")
            if await server.up("/health"):
                return
            await asyncio.sleep(BETWEEN)

    def end(self) -> None:
        """End the server and its child processes, if it was started here."""
        self._server.end()
