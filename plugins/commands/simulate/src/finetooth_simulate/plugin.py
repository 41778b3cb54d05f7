"""`ft simulate`: bytes and seconds that a run over several islands would take to exchange what it trains."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="simulate",
        build="finetooth_simulate.command:command",
        summary="estimate what a run would send over a slow link, and how long that takes",
        section="Train",
    )
