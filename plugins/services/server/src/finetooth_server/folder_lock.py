"""One server at a time works on a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetooth_hooks import UserError

FILE = ".lock"


def make_folder(folder: Path) -> None:
    """Make a server's folder, which only its owner can read, if it is not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}", action="choose another folder") from error


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder. The system lets go of it however the process ends, so nothing is left to clean after a crash.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    make_folder(folder)
    try:
        import fcntl
    except ImportError:  # no such lock on this system
        yield
        return
    with (folder / FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            who = file.read().strip() or "another one"
            raise UserError(
                f"--folder {folder}: a server works on it in process {who}",
                action="stop that one, or give this one a folder of its own",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
