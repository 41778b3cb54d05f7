"""The server's own process, where the sampler starts it."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from finetooth_hooks import RecipeError

from finetooth_serversamplers.asking import Asking, Server, ServerGone

BETWEEN = 0.2
"""Seconds between two looks whether it is there."""


class Process:
    """Starts a server, and ends it with the run.

    Args:
        command: word by word; empty: somebody else starts it.
        ready: seconds that it may take.
        wait: seconds that one which somebody else starts may take; 0: it is there.
        settings: of its environment, where they are not set.
    """

    def __init__(
        self, command: Sequence[str], asking: Asking, ready: float, wait: float, settings: Mapping[str, str]
    ) -> None:
        self._command, self._asking, self._ready, self._wait = command, asking, ready, wait
        self._settings = settings
        self._running: subprocess.Popen[bytes] | None = None
        atexit.register(self.end)

    def begin(self) -> None:
        """Have it running.

        Raises:
            RecipeError: the command cannot be run.
            ServerGone: it is not there within the time.
        """
        if not self._command:
            wait, self._wait = self._wait, 0.0
            if wait:
                self._asking.within(wait).run(self._healthy)
            return
        if self._running is not None and self._running.poll() is None:
            return
        self.end()
        try:
            environment = {**self._settings, **os.environ}
            self._running = subprocess.Popen(
                list(self._command), stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
        except OSError as error:
            raise RecipeError(
                "method.sampler.start", f"{self._command[0]}: {error.strerror}", action="fix it"
            ) from error
        self._asking.within(self._ready).run(self._healthy)

    async def _healthy(self, server: Server) -> None:
        while True:
            if self._running is not None and (code := self._running.poll()) is not None:
                raise ServerGone(
                    f"{self._asking.called}: {self._command[0]} ended with {code} before it answered",
                    action="look at what it said above",
                )
            if await server.up("/health"):
                return
            await asyncio.sleep(BETWEEN)

    def end(self) -> None:
        """End it, if it was started here, and what it started: workers of a server that was killed live on, and keep
        the device's memory."""
        running, self._running = self._running, None
        if running is None:
            return
        if running.poll() is None:
            running.terminate()
            with suppress(subprocess.TimeoutExpired):
                running.wait(10)
        with suppress(ProcessLookupError, AttributeError):  # Windows has no groups
            os.killpg(running.pid, signal.SIGKILL)
        running.kill()
        running.wait()
