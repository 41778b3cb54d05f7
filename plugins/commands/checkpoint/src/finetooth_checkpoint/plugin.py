"""`ft checkpoint`: list, check, compare and remove checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="checkpoint",
        build="finetooth_checkpoint.command:command",
        summary="list, check, compare and remove checkpoints",
        section="Use",
    )
