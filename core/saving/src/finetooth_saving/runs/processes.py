"""Runs as processes of their own, that whoever began them may outlive or not: begun, stopped, and what they printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from finetooth_toolbox.files.locks import FILE as LOCK

OWN = ("FT_ENCRYPTION_KEY", "FT_API_KEY", "FT_BOARD_KEY")
"""Secrets of a server, which no run that it begins needs."""
TAIL = 2_000
"""Characters of a run's output that are told."""
BEGUN: list[subprocess.Popen[bytes]] = []
"""Processes that were begun here, so that those that have ended leave no zombies."""


def environment() -> dict[str, str]:
    """The environment without secrets of a server."""
    return {name: value for name, value in os.environ.items() if name not in OWN}


def ft(*arguments: str) -> list[str]:
    """The command `ft` with arguments, of this environment."""
    return [sys.executable, "-m", "finetooth", *arguments]


def begin(arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Run `ft` with arguments in a process of its own, in the background; what it prints goes behind what is in the
    run's log.

    Args:
        folder: of the run.

    Returns:
        The process.
    """
    reap()
    log = log_of(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
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


def stop(folder: Path) -> None:
    """Ask a run that is under way to end, as Ctrl-C does: the last whole step is saved.

    Raises:
        OSError: the process is not there any more.
        ValueError: the folder does not say which process it is.
    """
    os.kill(int((folder / LOCK).read_text(encoding="utf-8")), signal.SIGINT)


def log_of(folder: Path) -> Path:
    """Where a run that was begun in the background prints: a file next to its folder."""
    return folder.with_name(f"{folder.name}.log")


def output_of(folder: Path, characters: int = TAIL) -> str:
    """The end of what such a run printed; empty for others."""
    try:
        return log_of(folder).read_text(encoding="utf-8", errors="replace")[-characters:]
    except OSError:
        return ""


def reap() -> None:
    """Note which of the processes that were begun here have ended."""
    BEGUN[:] = [process for process in BEGUN if process.poll() is None]
