"""Options of the launcher `ray`. Imports no Ray, which takes seconds."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

from finetooth_hooks import Options, PlanError, install_command
from finetooth_hooks.protocols import Launcher
from pydantic import Field


class RayOptions(Options):
    """Ranks on the machines of a Ray cluster that runs."""

    address: str = "auto"
    """Address of the cluster: `host:port`, or `auto` for RAY_ADDRESS or this machine's cluster."""

    cpus_per_rank: float = Field(default=1, gt=0)
    """CPUs that Ray reserves for each rank."""

    gpus_per_rank: float | Literal["auto"] = "auto"
    """GPUs that Ray reserves for each rank, which sees no others; `auto` is 1 if the cluster has any, else 0."""

    patience: float = Field(default=300.0, gt=0)
    """Seconds to wait until the cluster has room."""

    grace: float = Field(default=10.0, gt=0)
    """Seconds that the other ranks have to end by themselves after one has failed."""


def build(options: RayOptions) -> Launcher:
    """Ranks in a Ray cluster.

    Raises:
        PlanError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise PlanError(
            "scale.launcher: ray needs the package ray, which is not installed",
            action=f"{install_command('finetooth[ray]')}, or set scale.launcher: ssh",
        )
    from finetooth_raylauncher.launcher import RayLauncher

    return RayLauncher(options, os.environ)
