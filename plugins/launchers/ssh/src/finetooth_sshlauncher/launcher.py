"""The launcher `ssh`."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from finetooth_hooks import PlanError
from finetooth_launching.ranks import RankOptions, RankProcess, RankStarter, carried, interrupts, run, variables
from pydantic import Field, StringConstraints

SSH = (
    "ssh", "-tt", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20",
    "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4",
)  # fmt: skip
"""With a terminal, so that a rank ends with its connection; never a question, which nobody would see."""

Host = Annotated[str, StringConstraints(pattern=r"^([\w.-]+@)?[A-Za-z0-9][\w.:-]*$")]


class SshOptions(RankOptions):
    """Ranks on hosts that ssh reaches without a password."""

    hosts: tuple[Host, ...] = ()
    """The hosts by their names for ssh (`~/.ssh/config` applies), that of rank 0 first."""

    address: str | None = None
    """Address at which the hosts reach rank 0's host. Default: its name in `hosts`."""

    port: int = Field(default=29500, gt=0, lt=65536)
    """Port on rank 0's host where the ranks meet."""

    grace: float = Field(default=10.0, gt=0)
    """Seconds that the other ranks have to end after one has failed; then they are killed."""


class SshLauncher(RankStarter):
    """Implements `finetooth_hooks.protocols.MachinesLauncher`."""

    name = "ssh"

    def __init__(self, options: SshOptions, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self._options = options

    def start(self, world: int, command: Sequence[str], *, nodes: int = 1) -> int:
        """See `finetooth_hooks.protocols.MachinesLauncher`. Rank 0 has this terminal.

        Raises:
            PlanError: `hosts` are not `nodes`.
        """
        hosts, local = self._options.hosts, world // nodes
        if len(set(hosts)) != nodes:
            raise PlanError(
                f"scale.launcher: hosts names {len(set(hosts))} hosts, and scale.nodes is {nodes}",
                action="name each host once, and set scale.nodes to their number",
            )
        address = self._options.address or hosts[0].rpartition("@")[2]
        with tempfile.TemporaryDirectory(prefix="ft-ranks-") as folder, interrupts():

            def start_all(command: Sequence[str]) -> list[RankProcess]:
                return [
                    RankProcess(
                        [*SSH, hosts[rank // local], self._remote(command, rank, world, rank % local, address)],
                        self._environment,
                        Path(folder) / f"rank-{rank}" if rank else None,
                        quiet=False,  # with a terminal, errors arrive as output
                    )
                    for rank in range(world)
                ]

            return run(start_all, command, self._options.grace, self._options.restarts, self._options.restart)

    def _remote(self, command: Sequence[str], rank: int, world: int, local: int, address: str) -> str:
        """The line for the shell of a host: ssh takes no list of arguments."""
        environment = {**carried(self._environment), **variables(rank, world, local, address, self._options.port)}
        settings = [f"{name}={value}" for name, value in environment.items()]
        return f"{shlex.join(['cd', str(Path.cwd())])} && exec {shlex.join(['env', *settings, *command])}"


def build(options: SshOptions) -> SshLauncher:
    """Ranks on several hosts."""
    return SshLauncher(options, os.environ)
