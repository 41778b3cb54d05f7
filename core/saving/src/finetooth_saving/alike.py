"""Ranks that save together act alike between two steps: what one of them is told, all do."""

from __future__ import annotations

import secrets
from typing import TypeVar

from finetooth_hooks.compute.collectives import Collective
from finetooth_hooks.errors import EngineError

T = TypeVar("T")


class Alike:
    """What ranks ask each other between two steps. All of them ask the same, in the same order.

    Args:
        line: between ranks that train one model; None for a process that trains alone.
        together: no rank can save alone, since each holds a part of what is saved.

    Attributes:
        leads: what this rank decides holds for all.
    """

    def __init__(self, line: Collective | None = None, *, together: bool = False) -> None:
        self._line, self._together = line, together  # a line between rows may count one rank and tell neighbours too
        self._signal = 0
        own = secrets.token_hex(8)
        self.leads = self.first(own) == own  # a rank may count as the first in a line of its own

    @property
    def alone(self) -> bool:
        """No other rank trains the same model."""
        return self._line is None

    def are_lost(self) -> bool:
        """Whether ranks that can only save together do not reach each other any more."""
        if self._line is None or not self._together:
            return False
        try:
            self._line.gather(None)
        except EngineError:
            return True
        return False

    def first(self, value: T) -> T:
        """What the first rank gave."""
        if self._line is None:
            return value
        told: T = self._line.broadcast(value)
        return told

    def signal(self, own: int) -> int:
        """The signal that asked some rank to end; 0 for none. A rank that can save alone ends alone, and what started
        the ranks ends the others. Once there is one, nobody asks again."""
        if self._line is None or not self._together:
            return own
        self._signal = self._signal or max(self._line.gather(own))
        return self._signal
