"""`ft completion`: the script that lets a shell complete `ft`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = {
    "bash": 'add to ~/.bashrc: eval "$(ft completion bash)"',
    "zsh": 'add to ~/.zshrc: eval "$(ft completion zsh)"',
    "fish": "write to ~/.config/fish/completions/ft.fish",
}

CHANGES = {
    "bash": (
        ("complete -o nosort -F", "complete -o nosort -o default -F"),
        (
            "    local IFS=",
            "    local word=${COMP_LINE:0:COMP_POINT}; word=${word##* }\n"
            "    [[ $word == [!-]*=* ]] && return\n    local IFS=",
        ),
        ("    return 0", "    [[ ${COMPREPLY[*]} == *= ]] && compopt -o nospace\n    return 0"),
    ),
    "zsh": (
        (
            "    for type key descr in",
            "    [[ -z $response ]] && { compset -P '*='; _files; return }\n    for type key descr in",
        ),
        ("compadd -U -V", "local -a end; [[ $completions == *= ]] && end=(-S '')\n        compadd \"${end[@]}\" -U -V"),
    ),
    "fish": (
        ('(string split ","', '(string split -m 1 ","'),
        (
            "    for completion in",
            '    if test -z "$response";\n'
            "        set -l word (commandline -ct);\n"
            "        string join '' -- (string match -r '^[^=]*=' -- $word; or echo '')"
            "(__fish_complete_path (string replace -r '^[^=]*=' '' -- $word));\n    end;\n    for completion in",
        ),
    ),
}
"""What is replaced in click's scripts, and by what: the shells then complete paths where `ft` knows no answer. Bash
makes three words of `data.train=rows`, so the last one is the start of a path and not of a setting. No space follows
`data.train=`."""


@click.command("completion", help="Print the completion script of a shell. For bash, " + SHELLS["bash"])
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    made = get_completion_class(shell)
    assert made is not None
    script = made(ctx.find_root().command, {}, "ft", "_FT_COMPLETE").source()
    for before, after in CHANGES[shell]:
        script = script.replace(before, after)
    click.echo(script)
