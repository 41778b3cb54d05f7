"""Calls that are executed in parts: each in a thread of its own, and one thread at a time runs.

What a call keeps between two parts is its thread's stack, so that an engine's primitive needs no other form to be
paused. torch's modes (gradients on or off, autocast) belong to a thread: those of a call that rests touch nobody.

A call that needs no engine for a while, because it writes to a disk, hands over and works in the background.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Lane:
    """A thread that executes one call after the other. `go_on` is for the writer; the rest is for who is executed."""

    def __init__(self) -> None:
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._work: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="finetooth-call", daemon=True)
        self._thread.start()

    def begin(self, work: Callable[[], None]) -> None:
        """What to execute, from the next `go_on` on."""
        self._work = work

    def go_on(self) -> bool:
        """Let it work until it hands over or ends; True if it has ended. Work in the background is waited for.

        Raises:
            BaseException: what the work raised.
        """
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._work is None

    def rest(self) -> None:
        """Hand over until the next `go_on`; from within the work."""
        self.step_aside()
        self.come_back()

    def step_aside(self) -> None:
        """Hand over, and work in the background; called from within the work."""
        self._back.release()

    def come_back(self) -> None:
        """Wait for the next `go_on`, after `step_aside`."""
        self._go.acquire()

    def close(self) -> None:
        """End the thread. Nothing is executed in it."""
        self._go.release()
        self._thread.join()

    def _live(self) -> None:
        while True:
            self._go.acquire()
            if self._work is None:
                return
            try:
                self._work()
            except BaseException as error:  # the writer's to bear
                self._error = error
            self._work = None
            self._back.release()


class Lanes:
    """Lanes that are free, to be used again: a thread of torch's keeps what makes its first products slow."""

    def __init__(self) -> None:
        self._free: list[Lane] = []

    def take(self) -> Lane:
        """One in which nothing is executed."""
        return self._free.pop() if self._free else Lane()

    def give_back(self, lane: Lane) -> None:
        """Its work has ended."""
        self._free.append(lane)

    def close(self) -> None:
        """End those that are free."""
        while self._free:
            self._free.pop().close()
