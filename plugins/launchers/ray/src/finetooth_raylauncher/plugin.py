"""Starts ranks on the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Launcher, hookimpl


@hookimpl
def ft_launchers() -> Iterator[Launcher]:
    yield Launcher(
        name="ray",
        build="finetooth_raylauncher.options:build",
        summary="starts ranks on the machines of a Ray cluster, one actor for each rank",
        here=lambda: False,  # its ranks are those of the launcher `environment`
        capabilities=frozenset({"machines"}),
    )
