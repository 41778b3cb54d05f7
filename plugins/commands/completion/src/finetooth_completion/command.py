"""`ft completion`: the script that lets a shell complete `ft`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = {
    "bash": 'add to ~/.bashrc: eval "$(ft completion bash)"',
    "zsh": 'add to ~/.zshrc: eval "$(ft completion zsh)"',
    "fish": "write to ~/.config/fish/completions/ft.fish",
}

BASH = (
    ("complete -o nosort -F", "complete -o nosort -o default -F"),
    (
        "    local IFS=",
        "    local word=${COMP_LINE:0:COMP_POINT}; word=${word##* }\n"
        "    [[ $word == [!-]*=* ]] && return\n    local IFS=",
    ),
)
"""What is replaced in click's script, and by what. Bash then completes paths where `ft` knows no answer. It makes three
words of `data.train=rows`, so the last one is the start of a path and not of a setting."""


@click.command("completion", help="Print the completion script of a shell. For bash, " + SHELLS["bash"])
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    made = get_completion_class(shell)
    assert made is not None
    script = made(ctx.find_root().command, {}, "ft", "_FT_COMPLETE").source()
    for before, after in BASH if shell == "bash" else ():
        script = script.replace(before, after)
    click.echo(script)
