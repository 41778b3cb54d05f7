"""`ft keys`: API keys of a server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click

from finetooth_server.commands.place import FOLDER, is_there, records_of, server_options
from finetooth_server.faults import Unauthorised
from finetooth_server.keys import SCOPES, USUAL, Keys, check_wishes


def _keys(folder: Path, database: str, *, make: bool = False) -> Keys:
    return Keys(records_of(folder, database, make=make))


def admits(tenant: str, folder: Path = FOLDER) -> Callable[[str], bool] | None:
    """Checks whether a key is a tenant's key with all rights; None if the tenant never had a key. Packages that do not
    import this one find it in the entry point group `finetooth.keys`."""
    if not is_there(folder, ""):
        return None
    keys = _keys(folder, "")
    if all(key.tenant != tenant for key in keys.list()):
        return None

    def admitted(key: str) -> bool:
        try:
            caller = keys.caller(key, keyless=False)
        except Unauthorised:
            return False
        return caller.tenant == tenant and caller.may("admin")

    return admitted


@click.group(name="keys")
def command() -> None:
    """Make, list and revoke API keys of a server. A running server sees the change at once."""


@command.command()
@click.option("--tenant", required=True, help="The tenant whose sessions, models and checkpoints the key sees.")
@click.option("--scopes", default=",".join(USUAL), show_default=True, help=f"Among {', '.join(SCOPES)}.")
@click.option("--name", default="", help="A note, for `ft keys list`.")
@click.option("--days", type=float, default=None, help="Days until the key expires; default: never.")
@server_options
def create(tenant: str, scopes: str, name: str, days: float | None, folder: Path, database: str) -> None:
    """Make a key. It is shown this once."""
    chosen = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    check_wishes(tenant, chosen, name=name, days=days)  # a refusal leaves no folder
    key = _keys(folder, database, make=True).create(tenant, chosen, name=name, days=days)
    click.echo(key)
    click.echo("this is the only time that it is shown; for tinker scripts put tml- before it", err=True)


@command.command(name="list")
@server_options
def list_(folder: Path, database: str) -> None:
    """List the keys; secrets are not kept."""
    for key in _keys(folder, database).list():
        ended = key.revoked or (key.expires if key.expires and key.expires < time.time() else None)
        state = f"ended {_day(ended)}" if ended else f"until {_day(key.expires)}" if key.expires else "valid"
        click.echo(
            f"{key.id}  {key.tenant}  {','.join(key.scopes)}  made {_day(key.created)}  {state}  {key.name}".rstrip()
        )


@command.command()
@click.argument("id")
@server_options
def revoke(id: str, folder: Path, database: str) -> None:
    """Revoke a key now."""
    _keys(folder, database).revoke(id)
    click.echo(f"{id} ended")


@command.command()
@click.argument("id")
@click.option(
    "--grace", default=24.0, show_default=True, type=click.FloatRange(0), help="Hours until the old key expires."
)
@server_options
def rotate(id: str, grace: float, folder: Path, database: str) -> None:
    """Make a new key with the rights of another, which expires after a while."""
    click.echo(_keys(folder, database).rotate(id, grace_hours=grace))


def _day(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
