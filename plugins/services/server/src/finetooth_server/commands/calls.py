"""`ft calls`: what waits at a server, and a way out for a call that must not be executed."""

from __future__ import annotations

import time
from pathlib import Path

import click

from finetooth_server.commands.place import records_of, server_options
from finetooth_server.encryption.values import Values
from finetooth_server.log import Log
from finetooth_server.settings import Limits


def _log(folder: Path, database: str) -> Log:
    """Works without the key of an encrypted database: it does not read the contents of calls."""
    limits = Limits()
    return Log(records_of(folder, database), Values.unread(), most=limits.queued, kept=limits.results)


@click.group(name="calls")
def command() -> None:
    """List the calls that wait at a server, and drop one. The server may be running, or unable to start."""


@command.command(name="list")
@server_options
def list_(folder: Path, database: str) -> None:
    """List the calls that wait, oldest first; what they carry is not shown."""
    waiting = _log(folder, database).waiting()
    for call in waiting:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(call.created))
        ended = f", the server ended {call.begun} times meanwhile" if call.begun else ""
        dropped = ", dropped" if call.dropped else ""
        click.echo(
            f"{call.id}  {call.tenant}  {call.operation} {call.seq} of {call.queue}  {call.size:,} bytes, since {since}"
            f"{ended}{dropped}"
        )
    if not waiting:
        click.echo("no call waits", err=True)


@command.command()
@click.argument("id")
@server_options
def drop(id: str, folder: Path, database: str) -> None:
    """Make a call fail when its turn comes, instead of executing it."""
    _log(folder, database).drop(id)
    click.echo(f"{id} will fail instead of being executed")
