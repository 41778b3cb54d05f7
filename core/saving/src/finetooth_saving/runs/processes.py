"""Runs as processes that may outlive the one that started them: starts and stops them, and reads their output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from finetooth_hooks.errors import UserError
from finetooth_toolbox.files.locks import FILE as LOCK

from finetooth_saving.run_folder import RUNS, is_begun, no_such_run, run_at
from finetooth_saving.runs.recorded import is_running

OWN = ("FT_ENCRYPTION_KEY", "FT_API_KEY", "FT_BOARD_KEY")
"""Secrets of a server, which its runs do not need."""
TAIL = 2_000
"""Number of shown characters of a run's output."""
BEGUN: list[subprocess.Popen[bytes]] = []
"""Processes that were started here, recorded so that ended ones leave no zombies."""


def environment() -> dict[str, str]:
    """The environment variables without secrets of a server."""
    return {name: value for name, value in os.environ.items() if name not in OWN}


def ft(*arguments: str) -> list[str]:
    """The command `ft` with arguments, of this environment."""
    return [sys.executable, "-m", "finetooth", *arguments]


def begin(arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Run `ft` with arguments in a background process; its output is appended to the run's log.

    Args:
        folder: of the run.

    Returns:
        The process.
    """
    reap()
    log = log_of(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        _lock(output, wait=True)  # the process inherits it, so it lasts as long as the process
        process = subprocess.Popen(
            ft(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(),
        )
    BEGUN.append(process)
    return process


def start(options: Sequence[str], recipe: Path | str, overrides: Sequence[str] = (), name: str = "") -> Path:
    """Begin a run; see `CommandContext.start`.

    Args:
        options: stand before the command.
    """
    folder = Path(name or Path(recipe).stem)
    folder = RUNS / folder if len(folder.parts) == 1 else folder
    if not is_free(folder):
        raise UserError(f"name: there is a run {folder}", action="choose another name")
    log_of(folder).unlink(missing_ok=True)
    begin([*options, "run", str(recipe), *overrides, "--output", str(folder)], folder)
    return folder


def stop(run: str) -> None:
    """Ask a run to end; see `CommandContext.stop`."""
    folder = _begun(run)
    problem = ""
    if is_running(folder):
        try:
            os.kill(int((folder / LOCK).read_text(encoding="utf-8")), signal.SIGINT)
            return
        except (OSError, ValueError) as error:  # the process has just ended, or another machine wrote the file
            problem = f"; {error}"
    raise UserError(f"{folder} is not under way{problem}", action=f"{folder / 'result.json'} says how it ended")


def resume(options: Sequence[str], run: str, overrides: Sequence[str] = ()) -> Path:
    """Continue a run; see `CommandContext.resume`.

    Args:
        options: stand before the command.
    """
    folder = _begun(run)
    if is_running(folder):
        raise UserError(f"{folder} is under way", action="stop it, or wait until it ends")
    begin([*options, "resume", str(folder), *overrides], folder)
    return folder


def _begun(run: str) -> Path:
    """The folder of a run that has begun.

    Raises:
        UserError: the run does not exist.
    """
    folder = run_at(run, is_begun)
    if folder is None:
        raise no_such_run(run)
    return folder


def is_free(folder: Path) -> bool:
    """Whether a run can begin in the folder: it has no run, and no background process is about to make one, also one of
    a server that has ended. A refused run leaves only its log."""
    reap()
    here = any(str(folder) in cast(list[str], process.args) for process in BEGUN)
    return not folder.exists() and not here and not _is_written(log_of(folder))


def _is_written(log: Path) -> bool:
    """Whether a process still writes a background run's log."""
    try:
        with log.open("rb") as file:
            return not _lock(file)
    except OSError:
        return False


def _lock(file: IO[bytes], *, wait: bool = False) -> bool:
    """Share the lock of a log that several processes may write; or try to get it alone.

    Returns:
        Whether the file is locked now, or cannot be.
    """
    try:
        import fcntl
    except ImportError:  # no such lock on this system
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # nor on this disk
        return True
    return True


def log_of(folder: Path) -> Path:
    """The log file of a background run, next to its folder."""
    return folder.with_name(f"{folder.name}.log")


def output_of(folder: Path, characters: int = TAIL) -> str:
    """The end of a background run's output; empty for other runs."""
    try:
        return log_of(folder).read_text(encoding="utf-8", errors="replace")[-characters:]
    except OSError:
        return ""


def reap() -> None:
    """Collect the exit status of ended processes that were started here."""
    BEGUN[:] = [process for process in BEGUN if process.poll() is None]
