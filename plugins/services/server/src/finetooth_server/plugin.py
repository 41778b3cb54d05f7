"""The engine's primitives as a service."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    """`ft serve`, `ft keys`, `ft calls`, `ft encryption`, `ft audit`."""
    yield Command(
        name="serve",
        build="finetooth_server.commands.serve:command",
        summary="serve models to train and sample, step by step",
        section="Serve",
    )
    yield Command(
        name="keys",
        build="finetooth_server.commands.keys:command",
        summary="make, list and end API keys of a server",
        section="Serve",
    )
    yield Command(
        name="calls",
        build="finetooth_server.commands.calls:command",
        summary="list the calls that wait at a server, and drop one",
        section="Serve",
    )
    yield Command(
        name="encryption",
        build="finetooth_server.commands.encryption:command",
        summary="encrypt what a server keeps, and change the key",
        section="Serve",
    )
    yield Command(
        name="audit",
        build="finetooth_server.commands.audit:command",
        summary="check the audit record of a server",
        section="Serve",
    )
