"""Pushing what a run trained to a model hub."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    """The command `ft push`."""
    yield Command(
        name="push",
        build="finetooth_hub.push:command",
        summary="publish a trained model or adapter on a model hub",
        section="Use",
    )
