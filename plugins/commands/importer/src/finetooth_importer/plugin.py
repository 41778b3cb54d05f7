"""`ft import`: a recipe from another tool's configuration."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="import",
        build="finetooth_importer.command:command",
        summary="make a recipe from another tool's configuration",
        section="Train",
    )
