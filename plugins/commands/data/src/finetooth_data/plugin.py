"""`ft data`: rows as the model will see them, data made ready ahead, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="data",
        build="finetooth_data.command:command",
        summary="show rows as the model sees them, prepare them, manage the cache",
        section="Train",
    )
