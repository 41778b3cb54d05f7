"""The launcher `local`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetooth_hooks import Context, Options, PlanError
from finetooth_hooks.protocols import Rank
from pydantic import Field

ADDRESS = "127.0.0.1"


class LocalOptions(Options):
    """Ranks on this machine."""

    grace: float = Field(default=5.0, gt=0)
    """Seconds that the other ranks have to end by themselves once one has failed."""


class LocalLauncher:
    """Implements `finetooth_hooks.protocols.Launcher`."""

    def __init__(self, options: LocalOptions, environment: Mapping[str, str]) -> None:
        self._grace, self._environment = options.grace, environment

    def rank(self) -> Rank | None:
        """None: where its ranks find themselves, the launcher `environment` knows.

        Raises:
            PlanError: that launcher is not there.
        """
        if "RANK" in self._environment:
            raise PlanError(
                "scale.launcher: this process was started as a rank, and local finds no place",
                action="install finetooth-environmentlauncher",
            )
        return None

    def start(self, world: int, command: Sequence[str]) -> int:
        """See `finetooth_hooks.protocols.Launcher`. Rank 0 has this terminal, the interrupt key reaches it alone."""
        port = _free_port()
        with tempfile.TemporaryDirectory(prefix="ft-ranks-") as folder:
            logs = [Path(folder) / f"rank-{rank}" for rank in range(world)]
            ranks = [self._started(rank, world, port, command, logs[rank]) for rank in range(world)]
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                return self._wait(ranks, logs)
            finally:
                signal.signal(signal.SIGINT, before)
                for process in ranks:
                    if process.poll() is None:
                        process.kill()
                    process.wait()

    def _started(self, rank: int, world: int, port: int, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        threads = max(1, (os.cpu_count() or 1) // world)
        given = {
            "OMP_NUM_THREADS": str(threads), **self._environment, "RANK": str(rank), "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank), "MASTER_ADDR": ADDRESS, "MASTER_PORT": str(port),
        }  # fmt: skip
        if rank == 0:
            return subprocess.Popen(list(command), env=given)
        given["TMPDIR"] = str(log.parent)  # what it leaves when it is ended goes with this folder
        with log.open("wb") as errors:
            return subprocess.Popen(
                list(command), env=given, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                start_new_session=True,
            )  # fmt: skip

    def _wait(self, ranks: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]) -> int:
        """Until rank 0 has ended, or another has failed and the rest had their time."""
        failed: int | None = None
        until = 0.0
        while ranks[0].poll() is None:
            if failed is None:
                failed = next((rank for rank, process in enumerate(ranks) if process.poll()), None)
                until = time.monotonic() + self._grace
            elif time.monotonic() > until:
                ranks[0].terminate()
                break
            time.sleep(0.05)
        if failed is not None:
            print(f"rank {failed} {_end(ranks[failed].returncode, logs[failed])}", file=sys.stderr)
        try:
            code = ranks[0].wait(timeout=self._grace)
        except subprocess.TimeoutExpired:
            ranks[0].kill()
            code = ranks[0].wait()
        if code == 0:
            self._settle(ranks)
        if failed is not None and code <= 0:
            code = 1
        return code if code >= 0 else 128 - code

    def _settle(self, ranks: Sequence[subprocess.Popen[bytes]]) -> None:
        """Give the others their time to end as rank 0 did."""
        until = time.monotonic() + self._grace
        while time.monotonic() < until and any(process.poll() is None for process in ranks):
            time.sleep(0.05)


def _end(code: int, log: Path) -> str:
    """How a rank ended, in words."""
    if code < 0:
        return f"was ended by signal {-code} ({signal.Signals(-code).name}); continue with ft resume"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"ended with exit code {code}: {lines[-1].strip()}" if lines else f"ended with exit code {code}"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind((ADDRESS, 0))
        port: int = listening.getsockname()[1]
        return port


def build(options: LocalOptions, context: Context) -> LocalLauncher:
    """Ranks on this machine."""
    del context
    return LocalLauncher(options, os.environ)
