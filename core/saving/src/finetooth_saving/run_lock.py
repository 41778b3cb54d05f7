"""A lock that lets only one process at a time write into a run folder."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from finetooth_hooks.errors import UserError
from finetooth_toolbox.files.locks import FolderHeldError, lock_folder


def run_lock(folder: Path) -> ExitStack:
    """Lock the folder until the returned stack is closed; the system releases the lock with any end of the process.

    Raises:
        UserError: another process holds the lock.
    """
    lock = ExitStack()
    try:
        lock.enter_context(lock_folder(folder))
    except FolderHeldError as error:
        raise UserError(
            f"{folder}: the run is under way in process {error.who}", action="wait for it, or stop it"
        ) from None
    return lock
