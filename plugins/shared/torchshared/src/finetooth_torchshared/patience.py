"""Ranks that wait for each other for as long as all of their processes live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Thread

import torch
import torch.distributed as dist

BEAT = 1.0
"""Seconds after which a rank that is busy says again that it lives."""


class Patience:
    """Meetings that no limit of time holds for. A thread of each rank says to the others how many it has come to, again
    and again while the rank is busy before one; only a rank that says nothing within the limit of the group is lost.

    Args:
        group: of all that meet, over gloo, and of no other use.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self._changed = group, Condition()
        self._depth = 0

    @contextmanager
    def waits(self) -> Iterator[None]:
        """See `finetooth_hooks.protocols.PatientCollective`.

        Raises:
            RuntimeError: a rank has ended, or is silent.
        """
        if not self._depth:
            self._came, self._all_came, self._over = 0, 0, False
            self._problem: Exception | None = None
            self._thread = Thread(target=self._beat, name="patience", daemon=True)
            self._depth = 1
            self._thread.start()
        else:
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:  # together, since the others see both at once
                self._depth -= 1
                self._came += 1
                self._changed.notify_all()
        with self._changed:
            self._changed.wait_for(lambda: self._all_came >= self._came or self._over)
        if not self._depth:
            self._thread.join()
        if self._problem is not None:
            raise self._problem

    def _beat(self) -> None:
        own = -1
        try:
            while not self._over:
                with self._changed:
                    self._changed.wait_for(lambda: self._came != own, BEAT)  # noqa: B023 - called at once
                    own, left = self._came, not self._depth
                least = torch.tensor([own, int(left)])
                dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self._group)
                with self._changed:
                    self._all_came, self._over = int(least[0]), bool(least[1])
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._problem, self._over = error, True
                self._changed.notify_all()
