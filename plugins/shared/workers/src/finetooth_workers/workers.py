"""Worker processes for functions that may raise, hang, end their process, or use SIGALRM.

Requests and replies are lines of JSON. A worker that does not reply in time is killed; another one takes its place when
it is needed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

START_LIMIT = 120.0
"""Seconds in which a worker has to have built its function: imports may be slow."""


class WorkerError(Exception):
    """A worker cannot start; the text gives the reason."""


@dataclass(frozen=True)
class Failure:
    """An error instead of a value.

    Attributes:
        kind: the function `raised`, took longer than the `time` limit, or its process `died`.
        text: of the error, in one line.
    """

    kind: Literal["raised", "time", "died"]
    text: str


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    index: int | None = None
    deadline: float = 0.0
    found: bytes = b""
    ready: bool = False

    def send(self, what: Any) -> None:
        """Write a line; reading later detects an ended process."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            self.process.stdin.flush()

    def end(self) -> None:
        """Kill the process and its child processes."""
        with suppress(ProcessLookupError, AttributeError):  # Windows has no groups
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


@dataclass
class Workers:
    """Processes that all call one function.

    Attributes:
        build: `module:function` that returns the function, from `options`.
        options: keyword arguments of it; JSON-able.
        count: processes at most.
        time_limit: seconds of one call.
    """

    build: str
    options: Mapping[str, Any]
    count: int = 1
    time_limit: float = 60.0
    _alive: list[_Worker] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, _end_all, self._alive)

    def __call__(self, requests: Sequence[Any]) -> list[Any]:
        """The function's value of each request, or a `Failure`.

        Args:
            requests: JSON-able.

        Raises:
            WorkerError: the function cannot be built.
        """
        todo = deque(enumerate(requests))
        results: list[Any] = [None] * len(requests)
        waiting = len(requests)
        try:
            while waiting:
                self._hand_out(todo)
                for index, result in self._next():
                    results[index] = result
                    waiting -= 1
        except BaseException:
            self.end()  # what is under way would be taken for the reply to another request
            raise
        return results

    def end(self) -> None:
        """Kill all of them."""
        _end_all(self._alive)

    def _hand_out(self, todo: deque[tuple[int, Any]]) -> None:
        """Give every idle worker a request, and start workers while there are more requests."""
        while len(self._alive) < min(self.count, len(todo) + sum(worker.index is not None for worker in self._alive)):
            self._alive.append(self._started())
        for worker in self._alive:
            if todo and worker.ready and worker.index is None:
                worker.index, request = todo.popleft()
                worker.deadline = time.monotonic() + self.time_limit
                worker.send(request)

    def _started(self) -> _Worker:
        command = [sys.executable, "-m", "finetooth_workers.worker"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        worker = _Worker(process)
        worker.deadline = time.monotonic() + START_LIMIT
        worker.send({"build": self.build, "options": dict(self.options)})
        return worker

    def _next(self) -> list[tuple[int, Any]]:
        """What comes next: results with the indices of their requests; none where a worker got ready."""
        busy = [worker for worker in self._alive if not worker.ready or worker.index is not None]
        with selectors.DefaultSelector() as pipes:
            for worker in busy:
                assert worker.process.stdout is not None
                pipes.register(worker.process.stdout, selectors.EVENT_READ, worker)
            left = min(worker.deadline for worker in busy) - time.monotonic()
            spoke = [key.data for key, _ in pipes.select(max(0.0, left))]
        results = []
        for worker in busy:
            result = self._read(worker) if worker in spoke else self._late(worker)
            if result is not None:
                results.append(result)
        return results

    def _read(self, worker: _Worker) -> tuple[int, Any] | None:
        assert worker.process.stdout is not None
        part = os.read(worker.process.stdout.fileno(), 1 << 20)
        worker.found += part
        if not part:
            return self._lost(worker, Failure("died", f"ended its process with exit code {worker.process.wait()}"))
        line, ended, rest = worker.found.partition(b"\n")
        if not ended:
            return None
        worker.found = rest
        reply = json.loads(line)
        if not worker.ready:
            if "raised" in reply:
                raise WorkerError(reply["raised"])
            worker.ready = True
            return None
        index, worker.index = worker.index, None
        assert index is not None
        return index, Failure("raised", reply["raised"]) if "raised" in reply else reply["value"]

    def _late(self, worker: _Worker) -> tuple[int, Any] | None:
        if time.monotonic() < worker.deadline:
            return None
        return self._lost(worker, Failure("time", f"took longer than {self.time_limit:g} seconds"))

    def _lost(self, worker: _Worker, why: Failure) -> tuple[int, Any] | None:
        self._alive.remove(worker)
        worker.end()
        if worker.index is None:
            raise WorkerError(why.text if why.kind == "died" else f"it was not ready within {START_LIMIT:g} seconds")
        return worker.index, why


def _end_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()
