"""An engine whose work several processes do together. Each is a rank of one model and of no other; whatever happens to
one of them, the server and its other models stay as they are.

Every rank gets every call as the log has it, arguments and all, and makes it: what belongs to it of the data, it finds
by itself, as in a run (`finetooth_steps.sharding`). Rank 0 answers.
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
from typing import Any

from finetooth_hooks import EngineBase, EngineError, EngineInfo, Handle
from finetooth_launching.ranks import RankProcess, free_port, how_it_ended, variables

from finetooth_server.settings import LINE

ADDRESS = "127.0.0.1"

PAUSE = 0.02
"""Seconds between two looks at whether others want their turn."""

GRACE = 5.0
"""Seconds that the other ranks have to answer once one has failed, and that one has to end that closed its line."""

LACKING = frozenset({"interrupt", "snapshots", "continuous", "module", "usage"})
"""What the engine of a rank can do and this one cannot: the others would have to be asked meanwhile, or it would have
to give away what another process holds."""


class RankLost(EngineError):
    """The process of a rank ended, and its model with it."""


class RankedEngine(EngineBase):
    """Starts the ranks, and builds the model at each.

    Args:
        command: of a rank: a program and its arguments.
        recipe: with the section `scale`.
        asked: called while the ranks compute, so that others have their turns.

    Raises:
        FinetoothError: the engine cannot be built.
        RankLost: a rank ended meanwhile.
    """

    def __init__(self, command: Sequence[str], recipe: Mapping[str, Any], asked: Callable[[], bool]) -> None:
        self._asked = asked
        world = int(recipe["scale"]["devices"])
        folder = Path(tempfile.mkdtemp(prefix="ft-ranks-"))
        self._processes: list[RankProcess] = []
        self._lines: list[socket.socket] = []
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
            self._lines.append(ours)
        built = self._sent({"recipe": _by_itself(recipe)})
        self._info, self._capabilities = EngineInfo(**built["info"]), frozenset(built["capabilities"]) - LACKING

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def capabilities(self) -> frozenset[str]:
        return self._capabilities

    def run(self, operation: str, arguments: Mapping[str, Any], seq: int = 0) -> Any:
        """The result of an operation of the log, executed by all ranks. It cannot be broken off.

        Raises:
            FinetoothError: a rank raised it.
            RankLost: a rank ended.
        """
        return self._sent({"operation": operation, "arguments": arguments, "seq": seq})

    def save(self, path: Path) -> None:
        self.run("save", {"folder": str(path)})

    def load(self, path: Path) -> None:
        self.run("load", {"folder": str(path)})

    def export(self, path: Path) -> None:
        self.run("export", {"folder": str(path)})

    def restore(self, path: Path) -> None:
        self.run("restore", {"folder": str(path)})

    def release(self, handle: Handle) -> None:
        self.run("release", {}, handle.id)

    def _sent(self, request: Mapping[str, Any]) -> Any:
        """Send a request to every rank, wait for all replies, and take that of rank 0."""
        text = json.dumps(request).encode() + b"\n"
        came = [b""] * len(self._lines)
        with selectors.DefaultSelector() as waiting:
            for rank, line in enumerate(self._lines):
                try:
                    line.sendall(text)
                except OSError:
                    self._lost(rank)
                waiting.register(line, selectors.EVENT_READ, rank)
            until = math.inf
            while waiting.get_map():
                for key, _ in waiting.select(PAUSE):
                    part = b""
                    with suppress(ConnectionResetError):  # it ended before it had read all
                        part = self._lines[key.data].recv(1 << 20)
                    if not part:
                        self._lost(key.data)
                    came[key.data] += part
                    if part.endswith(b"\n"):
                        waiting.unregister(key.fileobj)
                        if not came[key.data].startswith(b'{"value"'):
                            until = min(until, time.monotonic() + GRACE)
                if time.monotonic() > until:
                    break  # the others wait for what failed
                self._asked()
        replies = [json.loads(text) if text.endswith(b"\n") else {} for text in came]
        if not all(replies):
            self.end()
        for rank, reply in enumerate(replies):
            if "failed" in reply:
                raise RuntimeError(f"rank {rank}: {reply['failed']}")
            if "raised" in reply and all(replies):
                raise EngineError(reply["raised"])
            if "raised" in reply:
                raise RankLost(f"rank {rank} of {len(replies)} failed, and the session has ended: {reply['raised']}")
        return replies[0]["value"]

    def _lost(self, rank: int) -> None:
        """
        Raises:
            RankLost: always; the other ranks are ended.
        """
        process, until = self._processes[rank], time.monotonic() + GRACE
        while process.poll() is None and time.monotonic() < until:  # it has closed its line, and is ending
            time.sleep(PAUSE)
        process.kill()
        how = how_it_ended(process.poll() or 0, process.last_line())
        world = len(self._processes)
        self.end()
        raise RankLost(
            f"rank {rank} of {world} {how}, and the session has ended with it",
            action="make another session, from a checkpoint if there is one",
        )


def _by_itself(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of an engine that shares its base with no other of its process."""
    backend = recipe.get("backend")
    if not isinstance(backend, Mapping):
        return dict(recipe)
    return {**recipe, "backend": {name: value for name, value in backend.items() if name != "share_base"}}


def _end(processes: Sequence[RankProcess], lines: Sequence[socket.socket], folder: Path) -> None:
    for line in lines:
        line.close()
    for process in processes:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
