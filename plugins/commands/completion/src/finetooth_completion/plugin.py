"""`ft completion`: print the completion script of a shell."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="completion",
        build="finetooth_completion.command:command",
        summary="print the completion script of a shell",
        section="Extend",
    )
