"""Cadences such as `50 steps`, `10 minutes`, `epoch`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_WORDS = re.compile(r"\s*(\d+(?:\.\d+)?)?\s*([a-z]+?)s?\s*", re.IGNORECASE)
_SHORT = {"s": "second", "sec": "second", "min": "minute", "h": "hour", "step": "step", "epoch": "epoch"}

EXPECTED = "a number of steps, '50 steps', '10 minutes', '2 hours', 'epoch' or '0.5 epochs'"


@dataclass(frozen=True)
class Cadence:
    """A cadence; all zero is never.

    Attributes:
        steps: interval in optimizer steps.
        seconds: interval in time.
        epochs: interval in passes over the data.
    """

    steps: int = 0
    seconds: float = 0.0
    epochs: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.steps or self.seconds or self.epochs)

    def times(self, steps: int | None, epochs: float) -> int:
        """Number of times in a run of these steps and epochs, as an upper bound if known; 1 if only time decides."""
        if self.steps and steps:
            return steps // self.steps
        if self.epochs:
            return math.floor(epochs / self.epochs + 1e-9)
        return int(bool(self))


def parse(value: Any) -> Cadence:
    """Read a cadence from a recipe's value.

    Raises:
        ValueError: the value is not a cadence.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"must be at least 0, got {value}")
        return Cadence(steps=value)
    match = _WORDS.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and value.strip().isdigit():
        return Cadence(steps=int(value))
    if match is None:
        raise ValueError(f"expected {EXPECTED}, got {value!r}")
    number, word = match[1], match[2].lower()
    unit, count = _SHORT.get(word, word), float(number or 1)
    if count <= 0 or not (unit in _SECONDS or unit == "epoch" or (unit == "step" and count.is_integer())):
        raise ValueError(f"expected {EXPECTED}, got {value!r}")
    if unit == "step":
        return Cadence(steps=int(count))
    return Cadence(epochs=count) if unit == "epoch" else Cadence(seconds=count * _SECONDS[unit])


class Clock:
    """Tells when a cadence is due.

    Args:
        cadence: the interval.
        now: seconds, any origin.
        epoch: passes done already.
        agreed: returns the common verdict of several ranks' clocks, which may differ.
    """

    def __init__(self, cadence: Cadence, now: float, epoch: float = 0.0, agreed: Callable[[bool], bool] = bool) -> None:
        self._cadence, self._last, self._epoch, self._agreed = cadence, now, epoch, agreed

    def due(self, step: int, epoch: float, now: float) -> bool:
        """Whether the cadence is due after `step`; if so, start the next interval. A step over the ends of two epochs
        is due once."""
        cadence, before = self._cadence, self._epoch
        self._epoch = epoch
        due = bool(cadence.steps) and step % cadence.steps == 0
        if cadence.epochs:
            due |= math.floor(epoch / cadence.epochs + 1e-9) > math.floor(before / cadence.epochs + 1e-9)
        if cadence.seconds and self._agreed(now - self._last >= cadence.seconds):
            due = True
        if due:
            self._last = now
        return due
