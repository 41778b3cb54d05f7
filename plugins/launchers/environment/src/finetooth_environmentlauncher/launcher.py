"""The launcher `environment`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Rank

from finetooth_environmentlauncher.places import place


class EnvironmentLauncher:
    """Implements `finetooth_hooks.protocols.Launcher`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def rank(self) -> Rank | None:
        """See `finetooth_hooks.protocols.Launcher`."""
        return place(self._environment)

    def start(self, world: int, command: Sequence[str]) -> int:
        """Refuses to start ranks.

        Raises:
            PlanError: always, since others start the ranks.
        """
        raise PlanError(
            f"scale.launcher: environment starts no ranks, and nothing started this process as one of {world}",
            action="start ft run with torchrun or srun, or leave scale.launcher out",
        )


def build() -> EnvironmentLauncher:
    """Ranks that others start."""
    return EnvironmentLauncher(os.environ)
