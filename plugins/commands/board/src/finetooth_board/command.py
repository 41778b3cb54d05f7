"""`ft board`."""

from __future__ import annotations

import os
from typing import Any

import click
from finetooth_hooks import CommandContext, UserError
from finetooth_saving.run_folder import RUNS
from finetooth_toolbox.loopback import is_loopback
from finetooth_wire.listening import Tls, address_of, listen, tell_certificate, tls_options, uvicorn_options

VARIABLE = "FT_BOARD_KEY"
"""The key that a browser on another machine has to give."""
LEAST = 16
"""Characters of a key that nobody guesses."""
FOLDER = RUNS / "board"
"""Where a certificate is kept that the board makes."""


@click.command("board")
@click.option("--host", default="127.0.0.1", help="Address to listen at; another than this machine's needs a key.")
@click.option("--port", default=8780, type=click.IntRange(0, 65535), help="Default: 8780; 0 is any that is free.")
@click.option("--open/--no-open", "opens", default=False, help="Open it in a browser.")
@tls_options
@click.pass_obj
def command(context: CommandContext | None, /, host: str, port: int, opens: bool, **encrypted: Any) -> int:
    """Serve a page over the runs of this folder to a browser on this machine. Ctrl-C ends the page, and no run."""
    tls, key = Tls(**encrypted), os.environ.get(VARIABLE, "")
    if not is_loopback(host):
        if len(key) < LEAST:
            raise UserError(
                f"--host {host}: others can reach it without a key",
                action=f"set {VARIABLE} to {LEAST} characters or more, or leave --host out and use an SSH tunnel",
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
    config = uvicorn.Config(make_app(key, context=context), log_level="warning", server_header=False, **shown)
    uvicorn.Server(config).run(sockets=[listening])
    return 0
