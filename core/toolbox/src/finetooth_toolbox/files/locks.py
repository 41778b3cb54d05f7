"""A lock that lets only one process at a time work in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".lock"


class FolderHeldError(Exception):
    """Another process holds a folder.

    Attributes:
        who: its process id, or words if that is unknown.
    """

    def __init__(self, who: str) -> None:
        super().__init__(f"held by process {who}")
        self.who = who


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock an existing folder. The system releases the lock with any end of the process, so a crash leaves nothing to
    clean. On a system without such locks, nothing is locked.

    Raises:
        FolderHeldError: another process holds the lock.
    """
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
            raise FolderHeldError(file.read().strip() or "another one") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
