"""`ft encryption`: what a server keeps, encrypted, and a change of its key."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import click
from finetooth_hooks import UserError

from finetooth_server.commands.place import records_of, server_options
from finetooth_server.encryption import values
from finetooth_server.encryption.master import MasterKeys, master_keys, new_key
from finetooth_server.encryption.vault import Vault
from finetooth_server.keeping.folder_lock import folder_lock

PLAIN = "not encrypted"


_KEY = click.option(
    "--encryption-key", type=click.Path(path_type=Path), help="File with the keys, as the server has it; default is "
    "FT_ENCRYPTION_KEY.",
)  # fmt: skip


def _keys(file: Path | None) -> MasterKeys:
    keys = master_keys(file)
    if keys is None:
        raise UserError("no encryption key", action="give --encryption-key FILE, or FT_ENCRYPTION_KEY")
    return keys


@click.group(name="encryption")
def command() -> None:
    """Encrypt what a server keeps: checkpoints, snapshots, and the data and results of calls."""


@command.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def key(file: Path) -> None:
    """Put a new key at the top of FILE; those that are there stay below it.

    The first key encrypts, all of them decrypt. Keep a copy elsewhere: without the key nothing can be read.
    """
    old = ""
    if file.exists():
        master_keys(file)
        old = file.read_text(encoding="ascii")
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.unlink(missing_ok=True)
        number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w", encoding="ascii") as writing:
            writing.write(f"{new_key()}\n{old}")
        beside.replace(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", action="choose another file") from error
    keys = master_keys(file)
    assert keys is not None
    click.echo(f"{keys.current}  written to {file}" + (", which holds the earlier ones too" if old else ""))


@command.command()
@server_options
def status(folder: Path, database: str) -> None:
    """Say which key encrypts how much; contents are not read."""
    vault = Vault(folder.absolute())
    counts = Counter(vault.key_of(place) or PLAIN for place in vault.places())
    records = records_of(folder, database)
    click.echo(f"calls: {values.key_of(records) or PLAIN}")
    for name, count in sorted(counts.items()):
        click.echo(f"checkpoints and snapshots: {count} {name}")
    records.close()


@command.command()
@_KEY
@server_options
def rotate(encryption_key: Path | None, folder: Path, database: str) -> None:
    """Wrap all data keys with the first key of the file; nothing else is rewritten. The server may run."""
    keys = _keys(encryption_key)
    vault, records = Vault(folder.absolute(), keys), records_of(folder, database)
    changed = int(values.rewrap(records, keys))
    for place in vault.places():
        try:
            changed += vault.rewrap(place)
        except (UserError, OSError):
            if place.exists():  # a running server may have removed it
                raise
    records.close()
    click.echo(f"{changed} data keys wrapped with {keys.current}")


@command.command()
@_KEY
@server_options
def seal(encryption_key: Path | None, folder: Path, database: str) -> None:
    """Encrypt what a server wrote without a key. The server must not run."""
    keys, records = _keys(encryption_key), records_of(folder, database)
    click.get_current_context().with_resource(folder_lock(folder.absolute()))
    vault = Vault(folder.absolute(), keys)
    vault.sweep()
    folders = [place for place in vault.places() if vault.key_of(place) is None]
    for place in folders:
        vault.seal(place)
    calls = values.seal_all(records, keys)
    records.close()
    click.echo(f"{len(folders)} checkpoints and snapshots and {calls} calls encrypted with {keys.current}")
