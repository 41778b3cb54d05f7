"""Options of `fsdp`, and its builder: a recipe is checked without torch."""

from __future__ import annotations

from typing import Literal

from finetooth_hooks import Context, Options, PlanError
from finetooth_hooks.protocols import Strategy
from pydantic import Field


class FsdpOptions(Options):
    """Fully sharded training: every rank holds a part of the weights, gradients and optimizer state."""

    transport: Literal["auto", "gloo", "nccl"] = "auto"
    """Library that sends weights and gradients: `auto` takes NCCL between GPUs and gloo otherwise."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank waits for the others before it gives up. It waits for a rank that is busy with its disk as
    long as that process lives."""
    keep_layers: bool = False
    """Whether a layer stays gathered from the forward to the backward pass. It is sent once less, but between the two
    passes every device holds the whole model."""
    offload: bool = False
    """Whether a rank's part of the weights, gradients and optimizer state lies in host memory, where the update is
    computed. A layer's part comes to the device when the layer is gathered."""
    sampling: Literal["whole", "layers"] = "whole"
    """What a rank gathers to sample: the `whole` model, once; or `layers`, each when it computes, for every token. The
    device then needs room for only two layers, but a token takes as long as sending the model."""
    replicas: int = Field(default=1, ge=0)
    """Number of groups of ranks that each hold the whole model, divided inside the group (hybrid sharding). Ranks of a
    group gather weights from each other; gradients are summed over the groups. `0`: as many as the ranks make, so that
    only `tensor` and `context` divide."""
    tensor: int = Field(default=1, ge=1)
    """Number of ranks that compute the same rows together, each with a part of every attention head group and of every
    MLP (tensor parallelism, Shoeybi et al., 2019, arXiv:1909.08053)."""

    context: int = Field(default=1, ge=1)
    """Number of ranks that compute the same rows together, each some of their positions, as with the strategy
    `context`. Weights, gradients and optimizer state are divided among these ranks too."""

    def copies(self, world: int) -> int:
        """How many groups of `world` ranks hold the whole model."""
        return self.replicas or world // (self.tensor * self.context)

    def parts(self, world: int) -> int:
        """Among how many of `world` ranks the weights of a replica are divided.

        Raises:
            PlanError: the ranks cannot be grouped as the options say.
        """
        size = (self.replicas or 1) * self.tensor * self.context
        if world % size:
            together = f"with tensor={self.tensor} and context={self.context}"
            raise PlanError(
                f"scale.strategy: {world} ranks do not make replicas={self.replicas} groups {together}",
                action=f"start a multiple of {size} ranks",
            )
        return world // self.copies(world) // self.tensor


def build(options: FsdpOptions, context: Context) -> Strategy:
    """Fully sharded training.

    Raises:
        PlanError: `tensor` cannot divide the model.
    """
    line = {"name": "ddp", "transport": options.transport, "timeout": options.timeout}
    inner = context.build("strategy", line, setting="scale.strategy")
    from finetooth_fsdp.strategy import Fsdp
    from finetooth_fsdp.tensor import check_config

    if options.tensor > 1:
        check_config(context.model.config, options.tensor)
    return Fsdp(options, inner)
