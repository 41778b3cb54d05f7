"""`ft watch RUN`: a full-screen view of a run."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="watch",
        build="finetooth_watch.command:command",
        summary="watch a run in the terminal, while it trains or after it ended",
        section="Use",
    )
