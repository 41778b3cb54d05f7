"""`ft advise`: what of a model fits which memory, and which method fits what one has."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="advise",
        build="finetooth_advise.command:command",
        summary="show how much of a model fits in memory, and which method fits your data",
        section="Train",
    )
