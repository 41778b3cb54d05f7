"""Options of `ddp`, and its builder: a recipe is checked without torch."""

from __future__ import annotations

from typing import Literal

from finetooth_hooks import Options
from finetooth_hooks.protocols import Strategy
from pydantic import Field


class DdpOptions(Options):
    """Data-parallel training."""

    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """Library that sends gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up. It waits for a rank that is busy with its disk as
    long as that process lives."""
    bucket_mb: float = Field(default=25.0, gt=0)
    """Megabytes of gradients that are summed at once."""


def build(options: DdpOptions) -> Strategy:
    """Data-parallel training."""
    from finetooth_ddp.strategy import Ddp

    return Ddp(options)
