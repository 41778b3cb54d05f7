"""A thread that does one job after the other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from finetooth_hooks.errors import EngineError
from finetooth_toolbox import blame


@dataclass
class Pending:
    """A queued job. When it is done it is dropped, with its copy of the trained parameters.

    Attributes:
        error: its exception.
    """

    job: Callable[[], None]
    name: str
    done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def run(self) -> None:
        try:
            self.job()
        except Exception as error:
            self.error = error
        except SystemExit as error:  # from a plugin: it would end this thread, and callers would wait forever
            what, action = blame.problem(error)
            self.error = EngineError(what, action=action)
        finally:
            self.job = _nothing
            self.done.set()


def _nothing() -> None:
    """The empty job of a finished `Pending`."""


class Worker:
    """Does jobs in order in a thread that does not keep the process alive: callers must wait for jobs that they need.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: deque[Pending] = deque()
        self._changed = threading.Condition()
        self._name = name
        self._thread: threading.Thread | None = None

    def hand(self, name: str, job: Callable[[], None]) -> Pending:
        """Queue a job; it runs after the earlier ones."""
        pending = Pending(job, name)
        with self._changed:
            self._jobs.append(pending)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return pending

    def withdraw(self) -> list[Pending]:
        """Remove the jobs that have not begun."""
        with self._changed:
            waiting = list(self._jobs)
            self._jobs.clear()
        return waiting

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                pending = self._jobs.popleft()
            pending.run()
