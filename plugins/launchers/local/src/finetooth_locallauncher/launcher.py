"""The launcher `local`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetooth_launching.ranks import RankOptions, RankProcess, RankStarter, free_port, interrupts, run, variables

ADDRESS = "127.0.0.1"


class LocalOptions(RankOptions):
    """Ranks on this machine."""


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


def build(options: LocalOptions) -> LocalLauncher:
    """Ranks on this machine."""
    return LocalLauncher(options, os.environ)
