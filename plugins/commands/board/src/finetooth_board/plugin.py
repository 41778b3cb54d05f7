"""`ft board`: a page over runs."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="board",
        build="finetooth_board.command:command",
        summary="open a page in the browser: start, watch and compare runs, chat, export",
        section="Look at runs",
    )
