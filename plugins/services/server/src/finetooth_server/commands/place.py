"""Where a server keeps its things, for commands that look at them."""

from __future__ import annotations

from pathlib import Path

from finetooth_hooks import UserError

from finetooth_server.records import Records
from finetooth_server.settings import Settings

FOLDER = Path("runs/server")


def records_of(folder: Path, database: str, *, make: bool = False) -> Records:
    """A server's database.

    Args:
        make: make the folder if it is not there.

    Raises:
        UserError: there is none.
    """
    if make:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    elif not folder.is_dir():
        raise UserError(f"--folder {folder}: there is no such folder", action="name the folder of a server")
    return Records(Settings(folder.absolute(), {}, database=database).database_url)
