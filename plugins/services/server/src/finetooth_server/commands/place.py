"""The folder and database of a server, for commands that read them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import click
from finetooth_hooks import UserError

from finetooth_server.keeping.records import Records
from finetooth_server.settings import DATABASE, Settings

FOLDER = Path("runs/server")


def server_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a server."""
    folder = click.option(
        "--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True, help="The server's folder."
    )
    database = click.option("--database", default="", help="The database that `ft serve` was given.")
    return folder(database(function))


def database_url(address: str) -> str:
    """An address with `${NAME}` replaced by variables of the environment, so that no command contains a password.

    Raises:
        UserError: the environment has no such variable.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UserError(f"--database: the environment has no {match[1]}", action=f"export {match[1]}=...")
        return quote(os.environ[match[1]], safe="")

    return re.sub(r"\$\{(\w+)\}", value, address)


def records_of(folder: Path, database: str, *, make: bool = False) -> Records:
    """A server's database.

    Args:
        make: make it if it is missing.

    Raises:
        UserError: there is none.
    """
    if make:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    elif not is_there(folder, database):
        missing = "no server has worked there" if folder.is_dir() else "this folder does not exist"
        raise UserError(f"--folder {folder}: {missing}", action="name the folder of a server")
    return Records(Settings(folder.absolute(), {}, database=database_url(database)).database_url)


def is_there(folder: Path, database: str) -> bool:
    """Whether a server's database exists; one at an address is assumed to exist."""
    return bool(database) or (folder / DATABASE).is_file()
