"""`ft init`: a recipe from five questions."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="init",
        build="finetooth_init.command:command",
        summary="ask five questions and write a recipe",
        section="Train",
    )
