"""Starts ranks on several hosts by ssh."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Launcher, hookimpl


@hookimpl
def ft_launchers() -> Iterator[Launcher]:
    yield Launcher(
        name="ssh",
        build="finetooth_sshlauncher.launcher:build",
        summary="starts ranks on several hosts by ssh",
        here=lambda: False,  # its ranks are those of the launcher `environment`
        capabilities=frozenset({"machines"}),
    )
