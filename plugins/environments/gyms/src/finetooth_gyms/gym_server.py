"""NeMo Gym as a process of the run: started by words of the recipe, waited for, ended with the run."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
from finetooth_hooks import EngineError, RecipeError
from finetooth_launching.server_process import ServerProcess

BETWEEN = 0.2
"""Seconds between two looks whether it answers."""
LOG = "nemogym.log"
"""In the run folder: what NeMo Gym writes."""


class GymServer:
    """Has NeMo Gym running.

    Args:
        command: that starts it, word by word; empty: it runs already.
        address: URL that has to answer.
        folder: where it runs; empty: where the run was started.
        ready: seconds that it may take to answer.
        log: file for its output.
    """

    def __init__(self, command: Sequence[str], address: str, folder: str, ready: float, log: Path) -> None:
        self._command, self._address, self._ready = command, address, ready
        place = Path(folder).expanduser() if folder else None
        self._server = ServerProcess(command, "method.environment.start", folder=place, log=log)

    def begin(self) -> None:
        """Start it, if the recipe says how and it does not run.

        Raises:
            RecipeError: the command cannot be run, or another server has its address.
            EngineError: it ended, or does not answer within the time.
        """
        if not self._command or self._server.runs:
            return
        if ended := self._server.ended():
            raise EngineError(f"environment nemogym: {ended}", action="fix it, then ft resume RUN")
        if is_taken(self._address):
            raise RecipeError(
                "method.environment.start", f"another server has {self._address} already",
                action="end it, give another address, or leave start out to use it",
            )  # fmt: skip
        self._server.begin()
        self._wait(time.monotonic() + self._ready)

    def end(self) -> None:
        """End it, if it was started here."""
        self._server.end()

    def _wait(self, until: float) -> None:
        while True:
            if ended := self._server.ended():
                raise EngineError(
                    f"environment nemogym: {ended}", action="correct its option start, or what that names"
                )
            if _answers(self._address):
                return
            if time.monotonic() > until:
                said = self._server.said()
                self._server.end()
                raise EngineError(
                    f"environment nemogym: {self._address} did not answer within {self._ready:g} s{said}",
                    action="let start serve this address, or raise ready",
                )
            time.sleep(BETWEEN)


def is_taken(address: str) -> bool:
    """Whether somebody listens at a URL."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=2).close()
    except OSError:
        return False
    return True


def _answers(address: str) -> bool:
    """Whether a URL answers with anything; NeMo Gym's servers have no route for `/` and say 404."""
    try:
        httpx.get(address, timeout=2)
    except httpx.HTTPError:
        return False
    return True
