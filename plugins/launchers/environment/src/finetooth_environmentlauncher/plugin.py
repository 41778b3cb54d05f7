"""Finds the place of a process that torchrun, srun or a script started as one of several ranks."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Launcher, hookimpl

from finetooth_environmentlauncher.variables import is_rank


@hookimpl
def ft_launchers() -> Iterator[Launcher]:
    yield Launcher(
        name="environment",
        build="finetooth_environmentlauncher.launcher:build",
        summary="this process is a rank that torchrun, srun or RANK and WORLD_SIZE started",
        here=is_rank,
    )
