"""Ranks that save together act alike between two steps: what one of them is told, all do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from finetooth_hooks.compute.collectives import Collective, is_first
from finetooth_hooks.errors import EngineError, StopRun
from finetooth_toolbox import blame

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
        self._own: StopRun | None = None
        self.leads = line is None or is_first(line)
        self._waits: Callable[[], AbstractContextManager[None]] = getattr(line, "waits", nullcontext)

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

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Inside the `with` block, this rank is busy with its disk; the others wait as long as its process lives.

        Raises:
            EngineError: behind the body, where another rank is lost.
        """
        with self._waits():
            yield

    @contextmanager
    def stops(self) -> Iterator[None]:
        """Inside the `with` block, plugins and trackers are called. A stop that one asks for at some rank is that of
        all.

        Raises:
            StopRun: the first rank's that asked, behind the body.
        """
        own, self._own = self._own, None
        try:
            yield
        except StopRun as stop:
            own = own or stop
        asked = [] if own is None else [(own.reason, own.exit_code)]
        if self._line is not None:
            asked = [of_rank for of_rank in self._line.gather(asked[0] if asked else None) if of_rank is not None]
        if asked:
            reason, code = asked[0]
            raise own if own is not None and own.reason == reason else StopRun(reason, exit_code=code)

    @contextmanager
    def last_stops(self, *, at_all: bool = False) -> Iterator[None]:
        """As `stops`, where a run ends and saves; others wait for a rank that is busy. What fails meanwhile is raised
        once all were asked, at its rank in place of another's stop.

        Args:
            at_all: every rank comes here; else those that can save alone are not asked, since one may have ended.
        """
        if self._line is None or not (at_all or self._together):
            yield
            return
        failure: Exception | None = None
        try:
            with self.stops():
                stop: StopRun | None = None
                with self.waits():
                    try:
                        yield
                    except StopRun as asked:
                        stop = asked
                    except Exception as error:
                        failure = error
                if stop is not None:
                    raise stop
        except StopRun:
            if failure is None:
                raise
        if failure is not None:
            raise failure

    @contextmanager
    def fails(self) -> Iterator[None]:
        """Inside the `with` block, something may fail at a rank; then it has failed at all that can only save together,
        which wait for one that is busy. A rank that saves alone may do so where the others train.

        Raises:
            EngineError: the first rank's, behind the body, where nothing failed at this one; a full disk is one here,
                too (`blame.is_full`).
        """
        own: Exception | None = None
        with self.waits() if self._together else nullcontext():
            try:
                yield
            except Exception as error:
                own = error
        if self._line is not None and self._together:
            failed = None if own is None or isinstance(own, StopRun) else (str(own), blame.is_full(own))
            told = [of_rank for of_rank in self._line.gather(failed) if of_rank is not None]
            if own is None and told:
                text, full = told[0]
                raise EngineError(text) from (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else None)
        if own is not None:
            raise own

    def all(self, own: bool) -> bool:
        """Whether it is so at every rank that can only save with this one."""
        return own if self._line is None or not self._together else all(self._line.gather(own))

    def later(self, call: Callable[[], None]) -> None:
        """Call what may ask for a stop at another step of each rank: such a stop counts with the next of `stops`.

        Raises:
            StopRun: of a process that trains alone.
        """
        try:
            call()
        except StopRun as stop:
            if self._line is None:
                raise
            self._own = stop

    def signal(self, own: int) -> int:
        """The signal that asked some rank to end; 0 for none. A rank that can save alone ends alone, and what started
        the ranks ends the others. Once there is one, nobody asks again."""
        if self._line is None or not self._together:
            return own
        self._signal = self._signal or max(self._line.gather(own))
        return self._signal
