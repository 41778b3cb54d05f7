"""`ft chat`: talk to a trained run or to a model."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="chat",
        build="finetooth_chat.command:command",
        summary="talk to a trained run or to a model",
        section="Use",
    )
