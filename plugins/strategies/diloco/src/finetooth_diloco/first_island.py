"""The first island is lost: the others end with a code of their own, so that a launcher begins all islands again."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread

from finetooth_hooks import EngineError
from torch.distributed import Store  # type: ignore[attr-defined]

PULSE = 1.0
"""Seconds between two looks at the first island."""


class FirstIslandLost(EngineError):
    """The first island has ended or does not answer. The exit code is neither that of an error nor that of a signal: a
    launcher that starts single ranks again ends all ranks instead, and begins all of them again."""

    exit_code = 75


class Watch:
    """Ends this process where the first island's store has not answered for a while.

    A thread of the first island's process answers, in the middle of a long step too, but not where that process is
    stopped or its machine has gone. A call of the store then never returns, so no exception could end the run.

    Args:
        store: a connection of its own, since a connection has one call at a time.
        limit: seconds. They count while this process runs, so that an island that was stopped itself does not blame the
            first one.
    """

    def __init__(self, store: Store, limit: float) -> None:
        self._store, self._limit = store, limit
        self._answers: SimpleQueue[None] = SimpleQueue()
        self._ended = Event()
        self._threads = [Thread(target=work, daemon=True) for work in (self._ask, self._watch)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Watch no longer. A thread that comes back from a call of torch while the process ends would abort it."""
        self._ended.set()
        self._threads[0].join(PULSE)

    def _ask(self) -> None:
        with suppress(RuntimeError):  # the first island has ended, and the island says so where it waits for the first
            while not self._ended.wait(PULSE):
                self._store.check(["now"])
                self._answers.put(None)
            return
        self._ended.set()

    def _watch(self) -> None:
        silent = 0.0
        while silent < self._limit + PULSE:
            try:
                self._answers.get(timeout=PULSE)
                silent = 0.0
            except Empty:
                silent += PULSE
            if self._ended.is_set():
                return
        again = "if the run does not begin again by itself, continue from the newest checkpoint with ft resume"
        print(f"diloco: the first island has not answered for {self._limit:g} s; {again}", file=sys.stderr, flush=True)
        os._exit(FirstIslandLost.exit_code)
