"""Options of `pipeline`, and its builder: a recipe is checked without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from finetooth_hooks import Context, Options, PlanError
from finetooth_hooks.protocols import Strategy
from pydantic import Field


class PipelineOptions(Options):
    """Pipeline-parallel training: each rank has some of the decoder's layers."""

    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """Library that sends hidden states and gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up, also while the first rank saves."""
    stages: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Number of neighbouring ranks that hold one model; `auto` takes all ranks. Several groups share the rows of a
    step."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """Order of a rank's forward and backward passes: `1f1b` holds the activations of at most as many micro-batches as
    there are stages (PipeDream-Flush: Narayanan et al., 2021, arXiv:2006.09503), `gpipe` those of all. With fewer
    micro-batches than stages `gpipe` is used."""

    shard: bool = False
    """Whether ranks with the same layers divide their weights, gradients and optimizer state as `fsdp` does. These
    ranks are neighbours then, and the stages of a model lie apart."""

    def ranks(self, world: int) -> int:
        """How many of `world` ranks hold one model.

        Raises:
            PlanError: the ranks do not make groups of as many.
        """
        stages = world if self.stages == "auto" else self.stages
        if world % stages:
            raise PlanError(
                f"scale.strategy.stages: {world} ranks do not make groups of {stages}",
                action=f"start a multiple of {stages} ranks",
            )
        return stages


def build(options: PipelineOptions, context: Context) -> Strategy:
    """Pipeline-parallel training."""
    line = {"name": "fsdp" if options.shard else "ddp", "transport": options.transport, "timeout": options.timeout}
    inner = context.build("strategy", line, setting="scale.strategy")
    from finetooth_pipeline.strategy import PipelineParallel

    return PipelineParallel(options, inner)
