"""Options of `deepspeed`, and its builder: a recipe is checked without torch."""

from __future__ import annotations

import importlib.util
from typing import Literal

from finetooth_hooks import Context, Options, PlanError, install_command
from finetooth_hooks.protocols import Strategy
from pydantic import Field, field_validator


class Zero3Options(Options):
    """ZeRO-3 by DeepSpeed: weights are gathered layer by layer."""

    offload: bool = False
    """Whether a rank's part of the weights lies in the memory of the host until a layer is gathered. What trains stays
    on the device in fp32. `optimizer.offload` moves the optimizer's state."""
    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """What carries weights and gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up."""


class DeepspeedOptions(Options):
    """ZeRO by DeepSpeed."""

    stage: Literal[1, 2, 3] = 2
    """What each rank keeps a part of: `1` the optimizer's state, `2` the summed gradients too. `3`, the weights too, is
    the strategy `zero3`."""
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
    def _leaves_weights_whole(cls, stage: int) -> int:
        if stage == 3:
            raise ValueError("stage 3 divides the weights, too, and is a strategy of its own; write strategy: zero3")
        return stage


def build(options: DeepspeedOptions, context: Context) -> Strategy:
    """ZeRO by DeepSpeed.

    Raises:
        PlanError: DeepSpeed is not installed.
    """
    line = _line(options, context)
    from finetooth_deepspeed.strategy import Deepspeed

    return Deepspeed(options, line)


def build_zero3(options: Zero3Options, context: Context) -> Strategy:
    """ZeRO-3 by DeepSpeed.

    Raises:
        PlanError: DeepSpeed is not installed.
    """
    line = _line(options, context)
    from finetooth_deepspeed.strategy import Zero3

    return Zero3(options, line)


def _line(options: DeepspeedOptions | Zero3Options, context: Context) -> Strategy:
    """A strategy that opens the line between the ranks and shares the data of a step among them."""
    if importlib.util.find_spec("deepspeed") is None:
        raise PlanError(
            "scale.strategy: it needs the package deepspeed, which is not installed",
            action=f"{install_command('finetooth[deepspeed]')}, or set scale.strategy: fsdp",
        )
    line = {"name": "ddp", "transport": options.transport, "timeout": options.timeout}
    made: Strategy = context.build("strategy", line, setting="scale.strategy")
    return made
