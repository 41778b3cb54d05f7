"""`ft plugins explain`, `doctor`, `new` and `try`: what plugins offer, whether they are sound, and how one begins."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="plugins-explain",
        build="finetooth_authoring.command:explain",
        summary="explain an entry: source, options, and when it is chosen",
        section="Extend",
    )
    yield Command(
        name="plugins-doctor",
        build="finetooth_authoring.command:doctor",
        summary="check plugins: import, versions, duplicates, conformance",
        section="Extend",
    )
    yield Command(
        name="plugins-new",
        build="finetooth_authoring.command:new",
        summary="write a new plugin that already passes its own tests",
        section="Extend",
    )
    yield Command(
        name="plugins-try",
        build="finetooth_authoring.command:try_",
        summary="train three steps with each entry of a plugin, and report failures",
        section="Extend",
    )
