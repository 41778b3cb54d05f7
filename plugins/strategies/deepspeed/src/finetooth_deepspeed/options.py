"""Options of `deepspeed`, and its builder: a recipe is checked without torch."""

from __future__ import annotations

import importlib.util
from typing import Literal

from finetooth_hooks import Context, Options, PlanError, install_command
from finetooth_hooks.protocols import Strategy
from pydantic import Field, field_validator

STAGE_3 = (
    "the engine reads weights outside the modules that DeepSpeed gathers them for, and ranks with unequal numbers of "
    "micro-batches would wait for each other; write stage: 2"
)


class DeepspeedOptions(Options):
    """ZeRO by DeepSpeed."""

    stage: Literal[1, 2, 3] = 2
    """What each rank keeps a part of: `1` the optimizer's state, `2` the summed gradients too. `3`, the weights too, is
    refused for now."""
    offload: bool = False
    """Whether the optimizer's state lies in the memory of the host, which also makes the update."""
    bucket_mb: float = Field(default=200.0, gt=0)
    """Megabytes of gradients or weights that are sent at once."""
    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """What carries gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up."""

    @field_validator("stage")
    @classmethod
    def _can_be_trained(cls, stage: int) -> int:
        if stage == 3:
            raise ValueError(STAGE_3)
        return stage


def build(options: DeepspeedOptions, context: Context) -> Strategy:
    """ZeRO by DeepSpeed.

    Raises:
        PlanError: DeepSpeed is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise PlanError(
            "scale.strategy: deepspeed needs the package deepspeed, which is not installed",
            action=f"{install_command('finetooth[deepspeed]')}, or set scale.strategy: ddp",
        )
    from finetooth_deepspeed.strategy import Deepspeed

    line = {"name": "ddp", "transport": options.transport, "timeout": options.timeout}
    return Deepspeed(options, context.build("strategy", line, setting="scale.strategy"))
