"""`ft board`."""

from __future__ import annotations

import os
import socket

import click
from finetooth_hooks import CommandContext, UserError
from finetooth_toolbox.loopback import is_loopback

VARIABLE = "FT_BOARD_KEY"
"""The key that a browser on another machine has to give."""
LEAST = 16
"""Characters of a key that nobody guesses."""


@click.command("board")
@click.option("--host", default="127.0.0.1", help="Address to listen at; another than this machine's needs a key.")
@click.option("--port", default=8780, type=click.IntRange(0, 65535), help="Default: 8780; 0 is any that is free.")
@click.option("--open/--no-open", "opens", default=False, help="Open it in a browser.")
@click.pass_obj
def command(context: CommandContext | None, host: str, port: int, opens: bool) -> int:
    """Serve a page over the runs of this folder to a browser on this machine. Ctrl-C ends the page, and no run."""
    key = os.environ.get(VARIABLE, "")
    if not is_loopback(host) and len(key) < LEAST:
        raise UserError(
            f"--host {host}: others can reach it without a key",
            action=f"set {VARIABLE} to {LEAST} characters or more, or leave --host out and use an SSH tunnel",
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror or error}", action="choose another --port") from error
    import uvicorn

    from finetooth_board.app import make_app

    port = listener.getsockname()[1]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    click.echo(f"the board of {os.getcwd()} is at {address} (Ctrl-C ends it)")  # noqa: PTH109 - for people to read
    if opens:
        import webbrowser

        webbrowser.open(address)
    config = uvicorn.Config(make_app(key, context=context), log_level="warning", server_header=False)
    uvicorn.Server(config).run(sockets=[listener])
    return 0
