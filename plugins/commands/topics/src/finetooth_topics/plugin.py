"""`ft agent-docs` and `ft fetch`."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="agent-docs",
        build="finetooth_topics.commands:agent_docs",
        summary="print what a coding assistant has to know, by topic",
        section="Extend",
    )
    yield Command(
        name="fetch",
        build="finetooth_topics.commands:fetch",
        summary="copy recipes or examples to start from",
        section="Train",
    )
