"""One server at a time works on a folder."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from finetooth_hooks import UserError
from finetooth_toolbox.files.locks import FolderHeldError, held_folder


def make_folder(folder: Path) -> None:
    """Make a server's folder, which only its owner can read, if it is not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}", action="choose another folder") from error


def folder_lock(folder: Path) -> ExitStack:
    """Hold the folder until what is returned is closed.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    make_folder(folder)
    held = ExitStack()
    try:
        held.enter_context(held_folder(folder))
    except FolderHeldError as error:
        raise UserError(
            f"--folder {folder}: a server works on it in process {error.who}",
            action="stop that one, or give this one a folder of its own",
        ) from None
    return held
