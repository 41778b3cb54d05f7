"""Options of `fsdp`, and its builder: a recipe is checked without torch."""

from __future__ import annotations

from typing import Literal

from finetooth_hooks import Context, Options
from finetooth_hooks.protocols import Strategy
from pydantic import Field


class FsdpOptions(Options):
    """Fully sharded training: every rank holds a part of the weights, gradients and optimizer state."""

    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """What carries weights and gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up."""
    keep_layers: bool = False
    """Whether a layer stays gathered from the forward to the backward pass: it is sent once less, and the whole model
    is on every device between the two."""


def build(options: FsdpOptions, context: Context) -> Strategy:
    """Fully sharded training."""
    line = {"name": "ddp", "transport": options.transport, "timeout": options.timeout}
    inner = context.build("strategy", line, setting="scale.strategy")
    from finetooth_fsdp.strategy import Fsdp

    return Fsdp(options, inner)
