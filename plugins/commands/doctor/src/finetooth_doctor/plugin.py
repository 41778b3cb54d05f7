"""`ft doctor`: what is wrong with a run, a model, or a recipe's loss."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="doctor",
        build="finetooth_doctor.command:command",
        summary="say what is wrong with a run, a model or a loss, and what to do",
        section="Use",
    )
