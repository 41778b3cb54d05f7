"""`ft runs`: runs as tables."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="runs",
        build="finetooth_runs.command:command",
        summary="list, show, compare and remove runs",
        section="Use",
    )
