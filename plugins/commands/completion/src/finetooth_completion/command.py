"""`ft completion`: the script that lets a shell complete `ft`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = {
    "bash": 'add to ~/.bashrc: eval "$(ft completion bash)"',
    "zsh": 'add to ~/.zshrc: eval "$(ft completion zsh)"',
    "fish": "write to ~/.config/fish/completions/ft.fish",
}


@click.command("completion", help="Print the completion script of a shell. For bash, " + SHELLS["bash"])
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(ctx.find_root().command, {}, "ft", "_FT_COMPLETE").source())
