"""`ft eval`: measure runs and models on any rows, side by side."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="eval",
        build="finetooth_eval.command:command",
        summary="measure runs and models on any rows, side by side",
        section="Use",
    )
