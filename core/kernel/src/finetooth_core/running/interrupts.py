"""Ctrl-C and SIGTERM while a run trains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interrupt:
    """Set by the first Ctrl-C or SIGTERM; the engine looks at it between two micro-batches, the loop between two steps.

    Attributes:
        signal: the one that came, 0 for none.
    """

    signal: int = 0


@contextmanager
def interrupts(interrupt: Interrupt) -> Iterator[None]:
    """Inside the `with` block, the first Ctrl-C or SIGTERM is noted; a Ctrl-C after it raises KeyboardInterrupt at
    once. A SIGTERM after it changes nothing: queues send it to a launcher and to its ranks."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        interrupt.signal = interrupt.signal or number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
