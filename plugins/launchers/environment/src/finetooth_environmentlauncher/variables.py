"""The variables that say that a process is one of several ranks; light, since `ft --help` imports it."""

from __future__ import annotations

import os
from collections.abc import Mapping

PLAIN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and scripts set; `LOCAL_RANK` may be missing."""
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
"""What `srun` sets for each task. A batch script has `SLURM_PROCID` without the second: it is not a rank."""


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started as one of several ranks, completely described or not."""
    return "RANK" in environment or "WORLD_SIZE" in environment or is_task(environment)


def is_task(environment: Mapping[str, str]) -> bool:
    """Whether `srun` started this process as one of several tasks; one task alone (`srun --pty bash`) is not a rank."""
    return all(name in environment for name in SLURM) and environment["SLURM_STEP_NUM_TASKS"] != "1"
