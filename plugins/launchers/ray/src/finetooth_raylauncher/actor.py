"""What runs in an actor: one rank of a run, as a process of the actor's machine."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetooth_launching.ranks import RankProcess, free_port

FIRST = (
    sys.executable, "-c",
    "import ctypes, os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT]); "
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL) if sys.platform == 'linux' else None; "
    "os.execvp(sys.argv[1], sys.argv[1:])",
)  # fmt: skip
"""Comes before a rank's command: it heeds the interrupt key, which Ray's processes ignore, and ends with its actor
(1 is PR_SET_PDEATHSIG, prctl(2))."""


class RankActor:
    """Starts one rank and answers for it. Ray makes an actor of this class."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ft-rank-")
        self._log = Path(self._folder.name) / "output"
        self._rank: RankProcess | None = None
        self._read = 0

    def machine(self) -> str:
        """The address of this machine within the cluster."""
        import ray

        return str(ray.util.get_node_ip_address())

    def port(self, address: str) -> int:
        """A free port at the address of this machine."""
        return free_port(address)

    def start(self, command: Sequence[str], variables: Mapping[str, str], folder: str) -> str:
        """Start the rank in a folder; returns what keeps it from starting, or nothing."""
        try:
            os.chdir(folder)
            self._rank = RankProcess([*FIRST, *command], {**os.environ, **variables}, self._log, quiet=False)
        except OSError as error:
            return str(error)
        return ""

    def poll(self) -> tuple[int | None, bytes]:
        """The exit code, None while it works; and what it wrote since the last call."""
        code = None if self._rank is None else self._rank.poll()
        if not self._log.exists():
            return code, b""
        with self._log.open("rb") as output:
            output.seek(self._read)
            new = output.read()
        self._read += len(new)
        return code, new

    def send(self, number: int) -> None:
        """Send the rank a signal."""
        if self._rank is not None and self._rank.poll() is None:
            self._rank.send(number)

    def kill(self) -> None:
        """End the rank."""
        if self._rank is not None:
            self._rank.kill()

    def last_line(self) -> str:
        """The last line that the rank wrote."""
        return "" if self._rank is None else self._rank.last_line()
