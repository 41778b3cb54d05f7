"""The launcher `local`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetooth_hooks import Context, Options
from finetooth_launching.ranks import RankProcess, RankStarter, free_port, interrupts, variables, wait
from pydantic import Field

ADDRESS = "127.0.0.1"


class LocalOptions(Options):
    """Ranks on this machine."""

    grace: float = Field(default=5.0, gt=0)
    """Seconds that the other ranks have to end by themselves once one has failed."""


class LocalLauncher(RankStarter):
    """Implements `finetooth_hooks.protocols.Launcher`."""

    name = "local"

    def __init__(self, options: LocalOptions, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self._grace = options.grace

    def start(self, world: int, command: Sequence[str]) -> int:
        """See `finetooth_hooks.protocols.Launcher`. Rank 0 has this terminal, the interrupt key reaches it alone."""
        port = free_port(ADDRESS)
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world))}
        with tempfile.TemporaryDirectory(prefix="ft-ranks-") as folder, interrupts():
            ranks = []
            for rank in range(world):
                environment = {**threads, **self._environment, **variables(rank, world, rank, ADDRESS, port)}
                if rank > 0:
                    environment["TMPDIR"] = folder  # what it leaves when it is ended goes with this folder
                ranks.append(RankProcess(command, environment, Path(folder) / f"rank-{rank}" if rank else None))
            return wait(ranks, self._grace)


def build(options: LocalOptions, context: Context) -> LocalLauncher:
    """Ranks on this machine."""
    del context
    return LocalLauncher(options, os.environ)
