"""Options of `pipeline`, and its builder: a recipe is checked without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from finetooth_hooks import Context, Options, PlanError
from finetooth_hooks.protocols import Strategy
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

OF_FSDP = ("keep_layers", "offload")
"""Options of `fsdp` that say where a rank holds its part of layers, and for how long. Between two passes a stage
computes other micro-batches."""


class PipelineOptions(Options):
    """Pipeline-parallel training: each rank has some of the decoder's layers."""

    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """Library that sends hidden states and gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up. It waits for a rank that is busy with its disk as
    long as that process lives."""
    stages: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Number of stages that the layers of a model are divided into; `auto`: as many as the ranks make. With more ranks
    than stages take, several models share the rows of a step."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """Order of a rank's forward and backward passes: `1f1b` holds the activations of at most as many micro-batches as
    there are stages (PipeDream-Flush: Narayanan et al., 2021, arXiv:2006.09503), `gpipe` those of all. With fewer
    micro-batches than stages `gpipe` is used."""

    shard: bool = False
    """Whether ranks with the same layers divide their weights, gradients and optimizer state as `fsdp` does. These
    ranks are neighbours then, and the stages of a model lie apart."""
    tensor: int = Field(default=1, ge=1)
    """Number of ranks at each stage that compute the same rows, each with a part of every attention head group and of
    every MLP of the stage, as with `tensor` of `fsdp`."""
    context: int = Field(default=1, ge=1)
    """Number of ranks at each stage that compute the same rows, each some of their positions, as with `context` of
    `fsdp`. They divide the weights, gradients and optimizer state of the stage, too."""

    @property
    def divides(self) -> bool:
        """Whether ranks with the same layers divide anything of a model."""
        return self.shard or self.together > 1

    @property
    def together(self) -> int:
        """Ranks of a stage that compute the same rows."""
        return self.tensor * self.context

    def count(self, world: int) -> int:
        """How many stages `world` ranks make.

        Raises:
            PlanError: the ranks cannot be grouped as the options say.
        """
        stages = max(1, world // self.together) if self.stages == "auto" else self.stages
        size = stages * self.together
        if world % size:
            of = f"{self.together} for each of {stages} stages" if self.together > 1 else str(stages)
            raise PlanError(
                f"scale.strategy.stages: {world} ranks do not make groups of {of}",
                action=f"start a multiple of {size} ranks",
            )
        return stages

    @model_validator(mode="before")
    @classmethod
    def _of_fsdp(cls, given: Any) -> Any:
        for name in OF_FSDP if isinstance(given, dict) else ():
            if name in given:
                action = f"leave it out, or set scale.strategy to {{name: fsdp, {name}: true}}, which has no stages"
                problem = f"{name} is an option of fsdp, and pipeline does without it, also with shard"
                raise PydanticCustomError("invalid", "{problem}", {"problem": problem, "action": action})
        return given


def build(options: PipelineOptions, context: Context) -> Strategy:
    """Pipeline-parallel training."""
    line: dict[str, Any] = {"name": "ddp", "transport": options.transport, "timeout": options.timeout}
    if options.divides:
        replicas = 1 if options.shard else 0
        line |= {"name": "fsdp", "replicas": replicas, "tensor": options.tensor, "context": options.context}
    inner = context.build("strategy", line, setting="scale.strategy")
    from finetooth_pipeline.strategy import PipelineParallel

    return PipelineParallel(options, inner)
