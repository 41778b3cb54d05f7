"""Options of `diloco`, and its builder: a recipe is checked without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from finetooth_hooks import Context, Options
from finetooth_hooks.protocols import Strategy
from pydantic import Field, field_validator, model_validator

PseudoGradient = Literal["fp32", "bf16", "fp16", "int8", "int4"]
"""What pseudo-gradients are sent in."""
_SHARDED = (
    "every rank of an island would hold a part of the weights and of the optimizer's state, so no group of them has a "
    "whole pseudo-gradient of its own"
)
REFUSED: Mapping[str, str] = {
    "full-shard": _SHARDED,
    "zero-3": _SHARDED,
    "zero3": _SHARDED,
    "pipeline": "no rank of an island would have all layers, and so the island's whole pseudo-gradient",
    "context": "islands share the rows of a step, and its ranks would all compute the same",
    "diloco": "an island that is made of islands is not DiLoCo",
}
"""Strategies that cannot train an island, each with the reason."""


class DilocoOptions(Options):
    """Islands train apart with the recipe's optimizer, and an outer Nesterov SGD applies the mean of their moves."""

    inner_steps: int = Field(default=100, ge=1)
    """Steps that an island trains between two exchanges."""
    outer_lr: float = Field(default=0.7, gt=0)
    """Learning rate of the outer optimizer. 1 with a momentum of 0 averages the islands' weights."""
    outer_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Nesterov momentum of the outer optimizer."""
    num_islands: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Number of groups of ranks that train separately; `auto` makes every rank an island."""
    pseudo_gradient_dtype: PseudoGradient = "fp32"
    """Number format in which pseudo-gradients are sent. `int8` and `int4` have a scale for every 256 numbers, and each
    island adds the rounding error to its next pseudo-gradient."""
    fragments: int = Field(default=1, ge=1)
    """Number of equal parts into which the trained weights are cut, in their order, so each part has neighbouring
    layers. One part is exchanged every `inner_steps / fragments` steps (streaming DiLoCo, Douillard et al., 2025,
    arXiv:2501.18512). This divides the peak traffic by `fragments`; the total stays about the same. Must divide
    `inner_steps`."""
    delay: int = Field(default=0, ge=0)
    """Steps that islands train while a fragment is on its way; fewer than those between two exchanges."""
    mixing: float = Field(default=0.0, ge=0, lt=1)
    """Share of an island's own weights that stays when a fragment arrives; the rest comes from the shared weights."""
    patience: Annotated[float, Field(gt=0)] | None = None
    """Seconds that islands wait at an exchange for a missing one. It is then left out of the average and named; once it
    is back, or its rank has been restarted, it takes the shared weights at the next exchange. Null waits for all
    islands, and a lost one ends the run."""
    within: str | dict[str, Any] = "ddp"
    """The strategy inside an island of several ranks."""

    @model_validator(mode="after")
    def _fragments_come_in_turn(self) -> Self:
        if self.inner_steps % self.fragments:
            raise ValueError(f"fragments is {self.fragments}, which does not divide inner_steps={self.inner_steps}")
        if self.delay >= self.inner_steps // self.fragments:
            raise ValueError(
                f"delay is {self.delay}, and fragments are exchanged every {self.inner_steps // self.fragments} steps; "
                "write a smaller delay"
            )
        return self

    @model_validator(mode="after")
    def _islands_that_leave_are_plain(self) -> Self:
        if self.patience is None:
            return self
        if self.within not in ("ddp", {"name": "ddp"}):
            raise ValueError(
                f"patience is set, and islands that leave and join have one rank each, not within: {self.within}; "
                "write within: ddp"
            )
        return self

    @field_validator("within")
    @classmethod
    def _can_train_an_island(cls, within: str | dict[str, Any]) -> str | dict[str, Any]:
        given = {"name": within} if isinstance(within, str) else within
        name = str(given.get("name", ""))
        plain = name.rpartition(":")[2].lower().replace("_", "-")
        together = [option for option in ("tensor", "context") if plain == "fsdp" and given.get(option, 1) != 1]
        if together:
            raise ValueError(
                f"diloco cannot run with {name} and {together[0]}, which computes rows twice; leave {together[0]} out"
            )
        whole = plain == "fsdp" and given.get("replicas", 1) == 1
        plain = "zero-3" if plain == "deepspeed" and given.get("stage") == 3 else plain
        reason = _SHARDED if whole else REFUSED.get(plain)
        if reason is not None:
            action = "within: {name: fsdp, replicas: 2} (hybrid shard), or within: ddp" if whole else "within: ddp"
            raise ValueError(f"diloco cannot run with {name}: {reason}; write {action}")
        return within


def build(options: DilocoOptions, context: Context) -> Strategy:
    """Islands of ranks that train apart."""
    inner = context.build("strategy", options.within, setting="scale.strategy.within")
    from finetooth_diloco.strategy import Diloco

    return Diloco(options, inner)
