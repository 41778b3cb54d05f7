"""`ft schema`: JSON Schema of the recipe."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="schema",
        build="finetooth_schema.command:command",
        summary="print the JSON Schema of a recipe, with the options of all installed plugins",
        section="Extend",
    )
