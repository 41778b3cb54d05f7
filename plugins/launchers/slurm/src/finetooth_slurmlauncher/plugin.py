"""Writes a SLURM job whose tasks are the ranks, and submits it."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Launcher, hookimpl


@hookimpl
def ft_launchers() -> Iterator[Launcher]:
    yield Launcher(
        name="slurm",
        build="finetooth_slurmlauncher.launcher:build",
        summary="writes a SLURM job whose tasks are the ranks, and submits it",
        here=lambda: False,  # its ranks are those of the launcher `environment`
        capabilities=frozenset({"machines"}),
    )
