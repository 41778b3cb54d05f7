"""Starts and drives several processes that render rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, cast

from finetooth_hooks.errors import EngineError
from finetooth_toolbox.decisions import Note

from finetooth_rows import worker_wire as wire
from finetooth_rows.rendering_work import Rendered
from finetooth_rows.work import Work

AHEAD = 2
"""Number of portions in each worker's queue, so that workers do not wait for rows."""

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def usable_cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


class Worker:
    """One worker process.

    Args:
        label: its name in errors, `worker 1 of 4`.
        job: the objects to build; `worker` is the module to run.
    """

    def __init__(self, label: str, job: Mapping[str, Any]) -> None:
        self._label = label
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", job["worker"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={
                **os.environ,
                **_ONE_THREAD,
                "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
            },
        )
        self._job = job

    def begin(self) -> list[Note]:
        """Wait until it has built its objects; returns its notes."""
        header, _ = self._ask(self._job, b"")
        return [(topic, text) for topic, text in header["notes"]]

    def render(self, header: Mapping[str, Any], body: bytes) -> Rendered:
        """Render some work in the worker.

        Raises:
            EngineError: the worker died.
            FinetoothError: the worker raised it.
        """
        return wire.unpack_rendered(*self._ask(header, body))

    def _ask(self, header: Mapping[str, Any], body: bytes) -> tuple[Mapping[str, Any], bytes]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            wire.send(cast(Any, stdin), header, body)
            answer = wire.receive(cast(Any, stdout))
        except (BrokenPipeError, EOFError, OSError, ValueError):
            answer = None
        if answer is None:
            raise self._death()
        if "failure" in answer[0]:
            raise wire.unpack_failure(answer[0]["failure"], answer[0]["trace"])
        return answer

    def _death(self) -> EngineError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        self._said.seek(0)
        lines = self._said.read()[-4000:].decode(errors="replace").strip().splitlines()
        last = f"; it last said: {lines[-1][:200]}" if lines else ""
        return EngineError(
            f"data preparation: {self._label} (process {self._process.pid}) died, {how}{last}",
            action="if memory ran out, set data.workers to fewer; nothing was kept",
        )

    def end(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                with suppress(OSError):  # the buffer may hold data for a dead process
                    stream.close()


class Workers:
    """Some workers, as a context manager; they end with it in any case.

    Args:
        count: number of workers.
        job: the objects that each builds.
        local: does the work that cannot be sent, in this process.
        note: receives the notes of the workers.
    """

    def __init__(
        self, count: int, job: Mapping[str, Any], local: Callable[..., Rendered], note: Callable[[Note], None]
    ) -> None:
        self._count, self._job, self._local, self._note = count, job, local, note
        self._workers: list[Worker] = []
        self._free: SimpleQueue[Worker] = SimpleQueue()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="data")

    def __enter__(self) -> Workers:
        try:
            for number in range(1, self._count + 1):
                self._workers.append(Worker(f"worker {number} of {self._count}", self._job))
            for notes in self._threads.map(Worker.begin, self._workers):
                for note in notes:
                    self._note(note)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        for worker in self._workers:
            self._free.put(worker)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.end()
        self._threads.shutdown(wait=True)

    def render(self, work: Iterator[Work], wanted: Callable[[], bool]) -> Iterator[Rendered]:
        """Results in the order of the work.

        Args:
            wanted: called for each piece of work: False only reads it.
        """
        waiting: deque[Future[Rendered] | Rendered] = deque()
        for item in work:
            message = wire.pack_work(item, wanted())
            if message is None:
                waiting.append(self._local(item, render=wanted()))
            else:
                waiting.append(self._threads.submit(self._do, *message))
            while len(waiting) > AHEAD * self._count + 1:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())

    def _do(self, header: Mapping[str, Any], body: bytes) -> Rendered:
        worker = self._free.get()
        try:
            return worker.render(header, body)
        finally:
            self._free.put(worker)


def _result(rendered: Future[Rendered] | Rendered) -> Rendered:
    return rendered if isinstance(rendered, Rendered) else rendered.result()


__all__ = ["Worker", "Workers", "usable_cores"]
