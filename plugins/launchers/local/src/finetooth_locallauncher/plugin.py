"""Starts ranks on this machine, and finds a process's place by the variables that torchrun sets."""

from __future__ import annotations

import os
from collections.abc import Iterator

from finetooth_hooks import Launcher, hookimpl


@hookimpl
def ft_launchers() -> Iterator[Launcher]:
    yield Launcher(
        name="local",
        build="finetooth_locallauncher.launcher:build",
        summary="ranks on this machine; takes its place under torchrun, too",
        default=True,
        here=lambda: "RANK" in os.environ and "WORLD_SIZE" in os.environ,
    )
