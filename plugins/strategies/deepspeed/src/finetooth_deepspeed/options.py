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
    """Whether a rank's part of the weights lies in host memory until a layer is gathered. Trained weights stay on the
    device in fp32. `optimizer.offload` moves the optimizer state."""
    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """Library that sends weights and gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up. It waits for a rank that is busy with its disk as
    long as that process lives."""


class DeepspeedOptions(Options):
    """ZeRO by DeepSpeed."""

    stage: Literal[1, 2, 3] = 2
    """What is divided among the ranks: `1` the optimizer state, `2` also the summed gradients. `3`, also the weights,
    is the strategy `zero3`."""
    offload: bool = False
    """Whether the optimizer state lies in host memory, where the update is then computed."""
    bucket_mb: float = Field(default=200.0, gt=0)
    """Megabytes of gradients or weights that are sent at once."""
    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """Library that sends gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up. It waits for a rank that is busy with its disk as
    long as that process lives."""

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
