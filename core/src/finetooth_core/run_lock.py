"""One process at a time writes into a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetooth_hooks.errors import UserError

FILE = ".lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the folder; the system lets go of it however the process ends.

    Raises:
        UserError: another process holds it.
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
            who = file.read().strip() or "another one"
            raise UserError(
                f"{folder}: the run is under way in process {who}", action="wait for it, or stop it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
