"""Ranks of a launcher: the variables with each rank's place, and waiting for the end of the run."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from finetooth_hooks import Options, PlanError, install_command
from finetooth_hooks.protocols import Rank
from pydantic import Field

CARRIED = ("FT_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
"""Variables that ranks on other machines get from this process."""

ASKED_TO_END = 128 + signal.SIGTERM
"""The exit code of a run that saved its state and ended because of SIGTERM."""

BAD_INPUT = 2
"""The exit code of a run that was refused, by every rank for the same reason."""

Restarted = Literal["run", "rank"]
"""What a launcher restarts after a failure of a rank: `run` or `rank`."""


class RankOptions(Options):
    """Options of launchers for a failure of a rank."""

    grace: float = Field(default=5.0, gt=0)
    """Seconds that the other ranks have to end after one has failed; then they are killed."""

    restarts: int = Field(default=0, ge=0)
    """How often ranks are restarted after one has failed."""

    restart: Restarted = "run"
    """What is restarted. `run`: all ranks, from the newest checkpoint of the recipe's `output`. `rank`: only the failed
    rank, while the others continue to train, which the strategy `diloco` with `patience` allows. A rank that fails
    after the last restart is left out. If rank 0 fails, all ranks restart from the newest checkpoint."""


class Started(Protocol):
    """A rank that was started, here or elsewhere."""

    def poll(self) -> int | None:
        """The exit code; -N where signal N ended it; None while it works."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it, and wait until it has ended."""
        ...

    def last_line(self) -> str:
        """The last line that it wrote, without line end; empty if it wrote none, or to the user's terminal."""
        ...


class RankProcess:
    """A rank as a process of this machine. Implements `Started`.

    Args:
        command: program and arguments.
        environment: its variables.
        log: file for its output; None: it shares the terminal, and gets the interrupt key.
        quiet: only errors go to the log, and it reads nothing.
        inherits: descriptors of open files that it gets, with a log.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path | None, *, quiet: bool = True,
        inherits: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._log, self._given = log, (command, environment, log)
        self._quiet = quiet
        if log is None:
            self._process = subprocess.Popen(list(command), env=environment)
            return
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command), env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if quiet else output, stderr=output, start_new_session=True,
                pass_fds=tuple(inherits),
            )  # fmt: skip

    def poll(self) -> int | None:
        """See `Started`."""
        return self._process.poll()

    def again(self) -> RankProcess:
        """The same rank, started once more."""
        return RankProcess(*self._given, quiet=self._quiet)

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """See `Started`."""
        self._process.terminate()

    def kill(self) -> None:
        """See `Started`."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def last_line(self) -> str:
        """See `Started`."""
        if self._log is None:
            return ""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def variables(rank: int, world: int, local: int, address: str, port: int) -> dict[str, str]:
    """Environment variables with a process's place, as from torchrun.

    Args:
        local: number of the rank among those of its machine.
        address: host of rank 0.
        port: where ranks meet there.
    """
    return {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(local), "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }  # fmt: skip


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that ranks on other machines get: those of `CARRIED`. Keys and tokens are not among them."""
    return {name: value for name, value in environment.items() if name in CARRIED}


class RankStarter:
    """What launchers are that start ranks and find no place: the launcher `environment` does.

    Attributes:
        name: of the launcher.
        mark: the variable that marks a process as a rank.
    """

    name: str
    mark = "RANK"

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def rank(self) -> Rank | None:
        """None: this process was not started as a rank.

        Raises:
            PlanError: this process is a rank, and no launcher is installed that finds its place; without this, each
                rank would start ranks again.
        """
        if self.mark in self._environment:
            raise PlanError(
                f"scale.launcher: this process was started as a rank, and {self.name} finds no place",
                action=install_command("finetooth-environmentlauncher"),
            )
        return None


def free_port(address: str) -> int:
    """A port that nothing listens on at an address of this machine."""
    with socket.socket() as listening:
        listening.bind((address, 0))
        port: int = listening.getsockname()[1]
        return port


def run(
    start: Callable[[Sequence[str]], list[RankProcess]], command: Sequence[str], grace: float, restarts: int,
    what: Restarted = "run",
) -> int:  # fmt: skip
    """Start all ranks of a command and wait for them; where one fails, start it, or all of them, again.

    Args:
        start: starts the ranks of a command.
        grace: see `wait`.
        restarts: how often.
        what: is started again: `run` is all ranks, from the newest checkpoint; `rank` the one that failed.

    Returns:
        The exit code of the last start.
    """
    if what == "rank":
        return _run_while_ranks_leave(start, command, grace, restarts)
    for again in range(1, restarts + 1):
        code = wait(start(command), grace, again=True)
        if not is_failure(code):
            return code
        print(f"restart {again} of {restarts}: all ranks begin again from the newest checkpoint", file=sys.stderr)
        command = resuming(command)
    return wait(start(command), grace)


def _run_while_ranks_leave(
    start: Callable[[Sequence[str]], list[RankProcess]], command: Sequence[str], grace: float, restarts: int
) -> int:
    """Wait for ranks of which each may fail: it is started again, after the last restart left out. The others cannot
    train on without rank 0, so all of them begin again with it, also where another ends with a code that `is_failure`
    does not know: it gave up on rank 0."""
    begun, ranks = 0, start(command)

    def lost(number: int) -> bool:
        nonlocal begun
        code = ranks[number].poll() or 0
        if not is_failure(code):
            return False
        ending = how_it_ended(code, ranks[number].last_line())
        if begun == restarts:
            print(f"rank {number} {ending}; the others train on without it", file=sys.stderr)
            return True
        begun += 1
        print(f"rank {number} {ending}; restart {begun} of {restarts}: it begins again", file=sys.stderr)
        ranks[number] = ranks[number].again()
        return True

    while is_failure(code := wait(ranks, grace, lost=lost, again=begun < restarts)) and begun < restarts:
        begun += 1
        again = f"restart {begun} of {restarts}: all ranks begin again from the newest checkpoint"
        print(f"rank 0 {how_it_ended(ranks[0].poll() or 0, ranks[0].last_line())}; {again}", file=sys.stderr)
        command = resuming(command)
        ranks = start(command)
    return code


def is_failure(code: int) -> bool:
    """Whether an exit code is that of an error or of a signal, and not done, bad input, interrupted, asked to end, or a
    stop that a plugin asked for."""
    return code < 0 or code == 1 or (code > 128 and code not in (130, ASKED_TO_END))


def resuming(command: Sequence[str]) -> list[str]:
    """The command that continues what a command of `ft run` or `ft resume` began, from the newest checkpoint."""
    parts = list(command)
    if "run" in parts and "--resume" not in parts:
        parts.insert(parts.index("run") + 1, "--resume")
    elif "resume" in parts and "--at" in parts:
        at = parts.index("--at")
        del parts[at : at + 2]
    return parts


def wait(
    ranks: Sequence[Started], grace: float, *, pause: float = 0.05, lost: Callable[[int], bool] = lambda number: False,
    again: bool = False,
) -> int:  # fmt: skip
    """Wait until rank 0 has ended, or another has failed and the rest had their time; then end all.

    A rank that fails is named on stderr, and one that hangs where others have failed. SIGTERM, as queues and containers
    send it, asks rank 0 to end, which saves and takes the others along.

    Args:
        grace: seconds that ranks have to end once one has failed, or rank 0 has ended; in the middle of them rank 0 is
            asked to end, behind them it is killed.
        pause: seconds between two looks.
        lost: called with the number of a rank other than 0 that failed; says whether the others train on, and may put
            another in its place.
        again: the caller starts all again where one fails, and says so; the end of rank 0 is its to tell.

    Returns:
        The exit code of the run: that of rank 0; if another rank failed and rank 0 had no error of its own, 2 where it
        was bad input, else 1.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: ranks[0].terminate())
    continues = "" if again else "; continue with ft resume"
    try:
        failed = _first_failure(ranks, grace, pause, lost)
        if failed is not None:
            code = ranks[failed].poll() or 0
            next_action = continues if code < 0 else ""
            told = code == ranks[0].poll() == BAD_INPUT or (again and failed == 0)
            if not told:  # by rank 0, of bad input, or by the caller
                print(f"rank {failed} {how_it_ended(code, ranks[failed].last_line())}{next_action}", file=sys.stderr)
        if not _all_end(ranks[:1], grace / 2, pause):
            _tell_hung([0], grace, continues)
            ranks[0].kill()
        code = ranks[0].poll() or 0
        alone = failed is None and is_failure(code)
        if (code == 0 or alone) and not _all_end(ranks, grace, pause) and alone:
            _tell_hung([number for number, rank in enumerate(ranks) if rank.poll() is None], grace, continues)
        if failed and (code <= 0 or code == ASKED_TO_END):
            code = BAD_INPUT if ranks[failed].poll() == BAD_INPUT else 1
        return code if code >= 0 else 128 - code
    finally:
        signal.signal(signal.SIGTERM, before)
        for rank in ranks:
            rank.kill()


def _first_failure(ranks: Sequence[Started], grace: float, pause: float, lost: Callable[[int], bool]) -> int | None:
    """The rank that failed before rank 0 ended, and without which the others do not train on; rank 0 is asked to end in
    the middle of `grace`. Rank 0 itself is given where a signal ended it alone: of an error it has told the user."""
    failed: int | None = None
    until = 0.0
    without: set[int] = set()
    while ranks[0].poll() is None:
        if failed is None:
            number = next((at for at, rank in enumerate(ranks) if at not in {0, *without} and rank.poll()), None)
            if number is not None and lost(number):
                if ranks[number].poll():
                    without.add(number)
            else:
                failed, until = number, time.monotonic() + grace / 2
        elif time.monotonic() > until:
            ranks[0].terminate()
            break
        time.sleep(pause)
    if failed is None and ranks[0].poll():  # it may have lost another since the last look, which is what to name
        others_first = (*range(1, len(ranks)), 0)
        failed = next((at for at in others_first if at not in without and (ranks[at].poll() or 0) < 0), None)
    return failed


def _tell_hung(numbers: Sequence[int], grace: float, next_action: str) -> None:
    for number in numbers:
        told = f"rank {number} did not end within {grace:g} s of the others and was killed: it hung"
        print(f"{told}{next_action}", file=sys.stderr)


def _all_end(ranks: Sequence[Started], grace: float, pause: float) -> bool:
    """Whether all end within `grace` seconds."""
    until = time.monotonic() + grace
    while any(rank.poll() is None for rank in ranks):
        if time.monotonic() > until:
            return False
        time.sleep(pause)
    return True


def how_it_ended(code: int, last_line: str) -> str:
    """The end of a rank in words, after its number: `was ended by signal 9 (SIGKILL)`."""
    if code < 0:
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"ended with exit code {code}: {last_line}" if last_line else f"ended with exit code {code}"


@contextmanager
def interrupts(act: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Inside the `with` block, the interrupt key calls `act` and ends nothing here: rank 0 ends, and `wait` with it."""
    # a handler, not SIG_IGN, which processes that start now would inherit
    before = signal.signal(signal.SIGINT, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
