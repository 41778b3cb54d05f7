"""Locks a folder, so that only one server uses it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from finetooth_hooks import UserError
from finetooth_toolbox.files.locks import FILE, FolderHeldError, lock_folder

from finetooth_server.settings import DATABASE


def make_folder(folder: Path) -> None:
    """Make a server's folder, readable only by its owner. Permissions of an existing folder are restricted if it holds
    only a server's files.

    Raises:
        UserError: it cannot be made, or others can read it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.name == "posix" and folder.stat().st_mode & 0o077:
            own = (folder / DATABASE).exists() or (folder / "audit.jsonl").exists()
            if not own and any(file.name != FILE for file in folder.iterdir()):
                raise UserError(
                    f"--folder {folder}: others can read it, and it holds more than a server's files",
                    action=f"give a folder of its own, or run: chmod 700 {folder}",
                )
            folder.chmod(0o700)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}", action="choose another folder") from error


def folder_lock(folder: Path) -> ExitStack:
    """Hold the folder until the returned lock is closed.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    make_folder(folder)
    stack = ExitStack()
    try:
        stack.enter_context(lock_folder(folder))
    except FolderHeldError as error:
        raise UserError(
            f"--folder {folder}: a server works on it in process {error.who}",
            action="stop that one, or give this one a folder of its own",
        ) from None
    return stack
