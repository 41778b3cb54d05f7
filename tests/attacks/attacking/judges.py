"""What is judged while a server is attacked: its health, another tenant's calls, its memory, what leaked."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """Of the time that others may lose by an attack.

    Attributes:
        health: seconds in which `/health` answers, all along.
        times: so many times its quiet time a turn of another tenant may take during an attack, in the mean.
        noise: seconds that a turn may take more than that: what a machine's own noise does to so short a time.
    """

    health: float
    times: float
    noise: float


QUIET = Limits(health=1.0, times=2.0, noise=0.1)
"""On a machine that does nothing else."""
BUSY = Limits(health=10.0, times=1.0, noise=30.0)
"""On one that runs other tests meanwhile, where times tell of the machine: what hangs is found, what is slow is not."""


@dataclass(frozen=True)
class Asked:
    """One answer that a watching process had.

    Attributes:
        begun: by the monotonic clock.
        problem: why it is none; `-` if it is one.
    """

    begun: float
    seconds: float
    problem: str

    @property
    def end(self) -> float:
        return self.begun + self.seconds


class Watch:
    """A process of `watch.py`, and what it said so far."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("watch.py")), *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._said: list[Asked] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            begun, seconds, problem = line.split()
            self._said.append(Asked(float(begun), float(seconds), problem))

    def between(self, begin: float, end: float) -> list[Asked]:
        """Those under way at some time between two moments."""
        return [one for one in list(self._said) if one.end > begin and one.begun < end]

    def wait_for(self, begin: float, count: int, patience: float) -> None:
        """Until so many that began after a moment have ended."""
        end = time.monotonic() + patience
        while time.monotonic() < end and sum(one.begun >= begin for one in list(self._said)) < count:
            time.sleep(0.05)

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(20)
        self._thread.join(20)


@dataclass(frozen=True)
class Verdict:
    """How one attack went.

    Attributes:
        wrong: what it broke; empty if nothing.
        said: what became of the attack itself.
        health: the slowest answer of `/health`, in seconds.
        quiet, attacked: seconds of another tenant's turn before and during it, in the mean.
        grown: resident bytes more than before, afterwards.
        seconds: that it lasted.
        tries: how often it was run until nothing was wrong, or given up.
        got_through: its own answers were not as they ought to be, which no busy machine explains.
    """

    name: str
    what: str
    wrong: str
    said: str
    health: float
    quiet: float
    attacked: float
    grown: int
    seconds: float
    tries: int = 1
    got_through: bool = False

    @property
    def ratio(self) -> float:
        """Of another tenant's time during the attack to its quiet time."""
        return self.attacked / self.quiet if self.quiet else 0.0


def times(asked: Sequence[Asked]) -> float:
    """Seconds in the mean."""
    return statistics.fmean(one.seconds for one in asked) if asked else 0.0


def problems(health: Sequence[Asked], quiet: Sequence[Asked], attacked: Sequence[Asked], limits: Limits) -> list[str]:
    """What was wrong while an attack lasted."""
    found = []
    slowest = max((one.seconds for one in health), default=0.0)
    if any(one.problem != "-" for one in health):
        found.append(f"/health: {next(one.problem for one in health if one.problem != '-')}")
    if slowest > limits.health:
        found.append(f"/health took {slowest:.1f} s")
    if any(one.problem != "-" for one in attacked):
        found.append(f"another tenant: {next(one.problem for one in attacked if one.problem != '-')}")
    if not attacked:
        found.append("no turn of another tenant came to its end")
    allowed = limits.times * times(quiet) + limits.noise
    if times(attacked) > allowed:
        found.append(f"another tenant's turn took {times(attacked):.2f} s, {times(quiet):.2f} s when it was quiet")
    return found
