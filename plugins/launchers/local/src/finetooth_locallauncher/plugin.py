"""Starts ranks on this machine."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Launcher, hookimpl


@hookimpl
def ft_launchers() -> Iterator[Launcher]:
    yield Launcher(
        name="local",
        build="finetooth_locallauncher.launcher:build",
        summary="starts ranks on this machine",
        default=True,
        here=lambda: False,  # its ranks are those of the launcher `environment`
    )
