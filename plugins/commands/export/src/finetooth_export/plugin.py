"""`ft export`: write what a run trained for another tool."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="export",
        build="finetooth_export.command:command",
        summary="write what was trained for another tool",
        section="Use",
    )
