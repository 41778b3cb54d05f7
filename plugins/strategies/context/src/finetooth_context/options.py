"""Options of `context`, and its builder: a recipe is checked without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from finetooth_hooks import Context, Options, PlanError
from finetooth_hooks.protocols import Strategy
from pydantic import Field


class ContextOptions(Options):
    """Context-parallel training: each rank computes some positions of every row."""

    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """Library that sends keys, values and gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up. It waits for a rank that is busy with its disk as
    long as that process lives."""
    size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Number of neighbouring ranks that compute the same rows; `auto` takes all ranks. Several groups share the rows of
    a step."""

    def neighbours(self, world: int) -> int:
        """How many of `world` ranks compute the same rows.

        Raises:
            PlanError: the ranks do not make groups of the size.
        """
        size = world if self.size == "auto" else self.size
        if world % size:
            raise PlanError(
                f"scale.strategy.size: {world} ranks do not make groups of {size}",
                action=f"start a multiple of {size} ranks",
            )
        return size


def build(options: ContextOptions, context: Context) -> Strategy:
    """Context-parallel training."""
    line = {"name": "ddp", "transport": options.transport, "timeout": options.timeout}
    inner = context.build("strategy", line, setting="scale.strategy")
    from finetooth_context.strategy import ContextParallel

    return ContextParallel(options, inner)
