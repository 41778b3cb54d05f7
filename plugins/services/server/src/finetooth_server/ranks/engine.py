"""An engine that runs in several processes.

Each is a rank of only one model; its failure does not affect the server and its other models. Every rank gets and
executes every call of the log with its arguments, and selects its part of the examples as in a run
(`finetooth_steps.sharding`). Rank 0 answers.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from finetooth_hooks import EngineBase, EngineError, EngineInfo, Handle, Interrupted
from finetooth_launching.ranks import RankProcess, free_port, how_it_ended, variables

from finetooth_server.ranks.lines import RankLine
from finetooth_server.settings import LINE

ADDRESS = "127.0.0.1"

PAUSE = 0.02
"""Seconds between two yields to others."""

GRACE = 5.0
"""Seconds for the other ranks to answer after one has failed, and for one to end after it closed its line."""

STARTING = 600.0
"""Seconds for a rank's first sign of life: it imports a framework, maybe from a slow disk."""

LACKING = frozenset({"interrupt", "snapshots", "continuous", "module", "usage"})
"""Capabilities of a rank's engine that this one lacks, because another process holds the objects. Ranks handle
interruption and tokens themselves, see `_sent`."""


class RankLost(EngineError):
    """The process of a rank ended, and its model with it."""


class RankedEngine(EngineBase):
    """Starts the ranks, and builds the model at each.

    Args:
        command: of a rank: a program and its arguments.
        recipe: with the section `scale`.
        asked: called while the ranks compute, to yield to others; says whether to stop.
        silence: seconds without a sign of life after which a rank counts as lost.
        scratch: folder for temporary files of ranks, such as plain weights.

    Raises:
        FinetoothError: the engine cannot be built.
        RankLost: a rank ended meanwhile.
    """

    def __init__(
        self,
        command: Sequence[str],
        recipe: Mapping[str, Any],
        asked: Callable[[], bool],
        silence: float,
        scratch: Path,
    ) -> None:
        self._asked, self._silence = asked, silence
        self._why = "the ranks of the session have ended"
        world = int(recipe["scale"]["devices"])
        folder = Path(tempfile.mkdtemp(prefix="ft-ranks-", dir=scratch))
        self._processes: list[RankProcess] = []
        self._lines: list[RankLine] = []
        self.end = weakref.finalize(self, _end, self._processes, self._lines, folder)
        port, threads = free_port(ADDRESS), str(max(1, (os.cpu_count() or 1) // world))
        for rank in range(world):
            ours, theirs = socket.socketpair()
            environment = {
                "OMP_NUM_THREADS": threads, **os.environ, **variables(rank, world, rank, ADDRESS, port),
                LINE: str(theirs.fileno()), "TMPDIR": str(folder),
            }  # fmt: skip
            with theirs:
                log = folder / f"rank-{rank}"
                self._processes.append(RankProcess(command, environment, log, inherits=[theirs.fileno()]))
            self._lines.append(RankLine(ours))
        built = self._sent({"recipe": _by_itself(recipe)})
        self._info, self._capabilities = EngineInfo(**built["info"]), frozenset(built["capabilities"]) - LACKING

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def capabilities(self) -> frozenset[str]:
        return self._capabilities

    def run(self, operation: str, arguments: Mapping[str, Any], seq: int = 0, **sent: Any) -> Any:
        """The result of an operation of the log, executed by all ranks.

        Args:
            sent: as in `_sent`.

        Raises:
            FinetoothError: a rank raised it.
            Interrupted: it was stopped.
            RankLost: a rank ended.
        """
        return self._sent({"operation": operation, "arguments": arguments, "seq": seq}, **sent)

    def save(self, path: Path) -> None:
        self.run("save", {"folder": str(path)}, asks=False)

    def load(self, path: Path) -> None:
        self.run("load", {"folder": str(path)})

    def export(self, path: Path) -> None:
        self.run("export", {"folder": str(path)}, asks=False)

    def restore(self, path: Path) -> None:
        self.run("restore", {"folder": str(path)})

    def release(self, handle: Handle) -> None:
        self.run("release", {}, handle.id)

    def _sent(
        self, request: Mapping[str, Any], *, stops: bool = False,
        written: Callable[[int, int, float], None] = lambda completion, token, logprob: None, asks: bool = True,
    ) -> Any:  # fmt: skip
        """Send a request to every rank, wait for all replies, and return that of rank 0.

        Args:
            stops: the ranks may be asked to stop.
            written: called with every token of rank 0.
            asks: yield to others meanwhile; False if they run anyway.
        """
        if not self.end.alive:
            raise RankLost(self._why)
        text, until, stopped = json.dumps(request).encode(), math.inf, False
        waiting = dict(enumerate(self._lines))
        with selectors.DefaultSelector() as selector:
            for rank, line in waiting.items():
                line.ask(text)
                selector.register(line, selectors.EVENT_READ | selectors.EVENT_WRITE, rank)
            while waiting and time.monotonic() < until:
                ready = {key.data for key, _ in selector.select(PAUSE)}
                for rank, line in list(waiting.items()):
                    for token in self._moved(rank, line, heard=rank in ready):
                        written(*token)
                    if line.reply is None:
                        selector.modify(line, selectors.EVENT_READ | selectors.EVENT_WRITE * line.sends, rank)
                        continue
                    selector.unregister(line)
                    del waiting[rank]
                    if not line.reply.keys() & {"value", "interrupted"}:
                        until = min(until, time.monotonic() + GRACE)  # the others wait for the failed rank
                if asks and self._asked() and stops and not stopped:
                    stopped = True
                    for line in waiting.values():
                        line.stop()
        if waiting:
            self.end()
        replies = [line.reply or {} for line in self._lines]
        for rank, reply in enumerate(replies):
            if "failed" in reply:
                raise RuntimeError(f"rank {rank}: {reply['failed']}")
            if "raised" in reply and all(replies):
                raise EngineError(reply["raised"])
            if "raised" in reply:
                raise RankLost(f"rank {rank} of {len(replies)} failed, and the session has ended: {reply['raised']}")
        if broken_off := next((reply["interrupted"] for reply in replies if "interrupted" in reply), ""):
            raise Interrupted(broken_off)
        return replies[0]["value"]

    def _moved(self, rank: int, line: RankLine, *, heard: bool) -> list[Any]:
        """Handle a rank's messages before its reply.

        Args:
            heard: messages may have come.

        Raises:
            RankLost: it has ended, or is silent for too long.
        """
        before: list[Any] | None = None
        with suppress(ConnectionError):  # it ended before it had read all
            before = line.move()
        if before is None:
            self._lost(rank)
        limit = self._silence if line.started else max(self._silence, STARTING)
        if not heard and time.monotonic() - line.heard > limit:
            self._lost(rank, silent=limit)
        return before

    def _lost(self, rank: int, *, silent: float = 0.0) -> NoReturn:
        """
        Args:
            silent: seconds for which it gave no sign of life; 0: it has ended.

        Raises:
            RankLost: always; the other ranks are ended.
        """
        process, until = self._processes[rank], time.monotonic() + GRACE
        if silent:
            how = f"on {socket.gethostname()} gave no sign of life for {silent:g} s (ft serve --rank-silence)"
        else:
            while process.poll() is None and time.monotonic() < until:  # it closed its line and is ending
                time.sleep(PAUSE)
            process.kill()
            how = how_it_ended(process.poll() or 0, process.last_line())
        self._why = f"rank {rank} of {len(self._processes)} {how}, and the session has ended with it"
        self.end()
        raise RankLost(self._why, action="make another session, from a checkpoint if there is one")


def _by_itself(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of an engine that does not share its base."""
    backend = recipe.get("backend")
    if not isinstance(backend, Mapping):
        return dict(recipe)
    return {**recipe, "backend": {name: value for name, value in backend.items() if name != "share_base"}}


def _end(processes: Sequence[RankProcess], lines: Sequence[RankLine], folder: Path) -> None:
    for line in lines:
        line.close()
    for process in processes:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
