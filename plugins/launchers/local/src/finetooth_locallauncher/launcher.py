"""The launcher `local`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetooth_hooks import Context, Options
from finetooth_launching.ranks import RankProcess, RankStarter, Restarted, free_port, interrupts, run, variables
from pydantic import Field

ADDRESS = "127.0.0.1"


class LocalOptions(Options):
    """Ranks on this machine."""

    grace: float = Field(default=5.0, gt=0)
    """Seconds that the other ranks have to end once one has failed; then they are killed."""

    restarts: int = Field(default=0, ge=0)
    """How often ranks are started again once one has failed."""

    restart: Restarted = "run"
    """What is started again: `run` is all ranks, from the newest checkpoint of the recipe's `output`; `rank` the one
    that failed, while the others train on, which the strategy `diloco` with `patience` allows. One that fails after the
    last restart is then left out. Where rank 0 fails, the run ends."""


class LocalLauncher(RankStarter):
    """Implements `finetooth_hooks.protocols.Launcher`."""

    name = "local"

    def __init__(self, options: LocalOptions, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self._options = options

    def start(self, world: int, command: Sequence[str]) -> int:
        """See `finetooth_hooks.protocols.Launcher`. Rank 0 has this terminal, the interrupt key reaches it alone."""
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world))}
        with tempfile.TemporaryDirectory(prefix="ft-ranks-") as folder, interrupts():

            def start_all(command: Sequence[str]) -> list[RankProcess]:
                port, ranks = free_port(ADDRESS), []
                for rank in range(world):
                    environment = {**threads, **self._environment, **variables(rank, world, rank, ADDRESS, port)}
                    if rank > 0:
                        environment["TMPDIR"] = folder  # what it leaves when it is ended goes with this folder
                    ranks.append(RankProcess(command, environment, Path(folder) / f"rank-{rank}" if rank else None))
                return ranks

            return run(start_all, command, self._options.grace, self._options.restarts, self._options.restart)


def build(options: LocalOptions, context: Context) -> LocalLauncher:
    """Ranks on this machine."""
    del context
    return LocalLauncher(options, os.environ)
