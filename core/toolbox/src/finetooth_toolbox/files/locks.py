"""One process at a time works in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".lock"


class FolderHeldError(Exception):
    """Another process holds a folder.

    Attributes:
        who: its number, or words for one that did not say.
    """

    def __init__(self, who: str) -> None:
        super().__init__(f"held by process {who}")
        self.who = who


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, which must exist. The system releases it however the process ends, so nothing is left to clean
    after a crash. Where the system has no such lock, nothing is held.

    Raises:
        FolderHeldError: another process holds it.
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
