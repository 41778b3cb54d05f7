"""Options of `deepspeed`, and its builder: a recipe is checked without torch."""

from __future__ import annotations

import importlib.util
from typing import Literal, Self

from finetooth_hooks import Context, Options, PlanError, install_command
from finetooth_hooks.protocols import Strategy
from pydantic import Field, model_validator


class DeepspeedOptions(Options):
    """ZeRO by DeepSpeed."""

    stage: Literal[1, 2, 3] = 2
    """What each rank keeps a part of: `1` the optimizer's state, `2` the summed gradients too, `3` the weights, too,
    which are gathered layer by layer."""
    offload: bool = False
    """Whether the optimizer's state lies in the memory of the host, which also makes the update."""
    bucket_mb: float = Field(default=200.0, gt=0)
    """Megabytes of gradients or weights that are sent at once."""
    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """What carries gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up."""

    @model_validator(mode="after")
    def _parts_lie_at_the_device(self) -> Self:
        if self.stage == 3 and self.offload:
            raise ValueError("offload moves the optimizer's state of stages 1 and 2; write offload: false")
        return self


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
