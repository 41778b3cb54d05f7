"""Makes ranks that save together act alike between two steps: a request to one of them holds for all."""

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
    """Exchanges decisions of ranks between two steps. All ranks make the same calls in the same order.

    Args:
        line: between ranks that train one model; None for a process that trains alone.
        together: no rank can save alone, since each holds a part of the state.

    Attributes:
        leads: this rank's decisions hold for all.
        waits: inside its `with` block, this rank is busy with its disk; the others wait as long as its process runs.
            After the body, an EngineError is raised if another rank is lost.
    """

    def __init__(self, line: Collective | None = None, *, together: bool = False) -> None:
        self._line, self._together = line, together  # a line between rows may count one rank and still reach neighbours
        self._signal = 0
        self._own: StopRun | None = None
        self.leads = line is None or is_first(line)
        self.waits: Callable[[], AbstractContextManager[None]] = getattr(line, "waits", nullcontext)

    @property
    def alone(self) -> bool:
        """Whether no other rank trains the same model."""
        return self._line is None

    def are_lost(self) -> bool:
        """Whether ranks that can only save together can no longer reach each other."""
        if self._line is None or not self._together:
            return False
        try:
            self._line.gather(None)
        except EngineError:
            return True
        return False

    def first(self, value: T) -> T:
        """The first rank's value, at every rank."""
        if self._line is None:
            return value
        told: T = self._line.broadcast(value)
        return told

    @contextmanager
    def stops(self) -> Iterator[None]:
        """Call plugins and trackers inside the `with` block. A stop that one of them requests at any rank holds for
        all.

        Raises:
            StopRun: after the body, the stop of the first rank that requested one.
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
        """As `stops`, for the end of a run that saves; others wait for a busy rank. An error in the body is raised
        after the exchange, at its rank instead of another rank's stop.

        Args:
            at_all: every rank calls this; otherwise ranks that can save alone exchange nothing, since one may have
                ended.
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
        """An error of one rank inside the `with` block becomes an error of all ranks that can only save together; they
        wait for a busy rank. A rank that can save alone may do so while the others train.

        Raises:
            EngineError: after the body, the first rank's error, if this rank had none; a full disk counts as one
                (`blame.is_full`).
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
        """Whether `own` is true at every rank that can only save together with this one."""
        return own if self._line is None or not self._together else all(self._line.gather(own))

    def later(self, call: Callable[[], None]) -> None:
        """Call a function that may request a stop, at different steps of different ranks. The stop takes effect at the
        next `stops`.

        Raises:
            StopRun: in a process that trains alone.
        """
        try:
            call()
        except StopRun as stop:
            if self._line is None:
                raise
            self._own = stop

    def signal(self, own: int) -> int:
        """The signal that asked some rank to end; 0 for none. A rank that can save alone ends alone, and the launcher
        ends the others. After the first signal, ranks no longer exchange."""
        if self._line is None or not self._together:
            return own
        self._signal = self._signal or max(self._line.gather(own))
        return self._signal
