"""Executes calls in parts: each call has a thread, and only one thread runs at a time.

A paused call keeps its state on its thread's stack, so an engine's primitive needs no special form to be paused.
torch's modes (gradients on or off, autocast) are per thread, so a paused call does not affect others.

A call that needs no engine for a while, because it writes to a disk, yields and works in the background.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Lane:
    """A thread that executes one call after the other. The writer calls `go_on`; the executed call uses the rest."""

    def __init__(self) -> None:
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._work: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="finetooth-call", daemon=True)
        self._thread.start()

    def begin(self, work: Callable[[], None]) -> None:
        """Set the work for the next `go_on`."""
        self._work = work

    def go_on(self) -> bool:
        """Run until the work yields or ends; True if it has ended. Waits for work in the background.

        Raises:
            BaseException: raised by the work.
        """
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._work is None

    def rest(self) -> None:
        """Yield until the next `go_on`; called by the work."""
        self.step_aside()
        self.come_back()

    def step_aside(self) -> None:
        """Yield, and work in the background; called by the work."""
        self._back.release()

    def come_back(self) -> None:
        """Wait for the next `go_on`, after `step_aside`."""
        self._go.acquire()

    def close(self) -> None:
        """End the idle thread."""
        self._go.release()
        self._thread.join()

    def _live(self) -> None:
        while True:
            self._go.acquire()
            if self._work is None:
                return
            try:
                self._work()
            except BaseException as error:  # re-raised in the writer
                self._error = error
            self._work = None
            self._back.release()


class Lanes:
    """Free lanes for reuse: torch's first products in a new thread are slow."""

    def __init__(self) -> None:
        self._free: list[Lane] = []

    def take(self) -> Lane:
        """A free lane."""
        return self._free.pop() if self._free else Lane()

    def give_back(self, lane: Lane) -> None:
        """Return a lane after its work."""
        self._free.append(lane)

    def close(self) -> None:
        """End the free lanes."""
        while self._free:
            self._free.pop().close()
