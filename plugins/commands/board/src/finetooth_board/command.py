"""`ft board`."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import click
from finetooth_hooks import CommandContext, UserError, install_command
from finetooth_saving.run_folder import RUNS
from finetooth_toolbox.loopback import is_loopback
from finetooth_wire.listening import Tls, address_of, listen, tell_certificate, tls_options, uvicorn_options

VARIABLE = "FT_BOARD_KEY"
"""The key that a browser on another machine has to give."""
LEAST = 16
"""Characters of a key that nobody guesses."""
TENANT = "board"
"""Whose keys open it, of those that `ft keys` makes."""
KEYS = "finetooth.keys"
"""Entry points of packages that keep keys."""
FOLDER = RUNS / "board"
"""Where a certificate is kept that the board makes."""


@click.command("board")
@click.option("--host", default="127.0.0.1", help="Address to listen at; needs a key unless it is local.")
@click.option("--port", default=8780, type=click.IntRange(0, 65535), help="Port; 0: any free one. Default: 8780.")
@click.option("--open/--no-open", "opens", default=False, help="Open the page in a browser.")
@tls_options
@click.pass_obj
def command(context: CommandContext, /, host: str, port: int, opens: bool, **encrypted: Any) -> int:
    """Serve a page over the runs of this folder to a browser on this machine. Ctrl-C ends the page; runs continue."""
    tls, key = Tls(**encrypted), os.environ.get(VARIABLE, "")
    admits: Callable[[str], bool] | None = partial(_same, key) if key else None
    if not is_loopback(host):
        admits = admits or _made_by_keys()
        if admits is None or 0 < len(key) < LEAST:
            raise UserError(
                f"--host {host}: others can reach it without a key",
                action=f"{_keys_installed()}run `ft keys create --tenant {TENANT} --scopes admin`, set {VARIABLE} to "
                f"{LEAST} characters or more, or leave --host out and use an SSH tunnel",
            )
        tls.check(host)
    listening = listen(host, port)
    listening.listen()  # so that a browser that is told the address now waits, and is not refused
    import uvicorn

    from finetooth_board.app import make_app

    certificate = tls.shown(FOLDER.absolute(), host)
    address = address_of(host, listening, certificate)
    click.echo(f"the board of {os.getcwd()} is at {address} (Ctrl-C ends it)")  # noqa: PTH109 - for people to read
    tell_certificate(certificate)
    if opens:
        import webbrowser

        webbrowser.open(address)
    shown = uvicorn_options(certificate)
    config = uvicorn.Config(make_app(context, admits), log_level="warning", server_header=False, **shown)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def _same(key: str, given: str) -> bool:
    return hmac.compare_digest(given.encode(), key.encode())


def _keys_installed() -> str:
    """How `ft keys` is installed here, where it is not."""
    return "" if entry_points(group=KEYS) else f"`{install_command('finetooth-server')}`, then "


def _made_by_keys() -> Callable[[str], bool] | None:
    """What knows the keys of `ft keys` for the board; None where there is none. A package that keeps keys offers it by
    an entry point, since plugins do not import each other."""
    offered = (entry.load()(TENANT) for entry in entry_points(group=KEYS))
    return next(filter(None, offered), None)
