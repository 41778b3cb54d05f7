"""ReLoRA (Lialin et al., 2023, arXiv:2307.05695): a low-rank addition that is merged into the base after a number of
steps and restarted, so that the sum of all additions has a higher rank than each.

At a restart A gets new random values and B becomes zero, the optimizer keeps a small share of its state by magnitude,
and the learning rate warms up again. The base changes: the artifact is a whole model, and every checkpoint contains the
merged weights. The paper trains from scratch and begins with steps of full rank, which a pretrained model does not
need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import LowRank, ModelFacts, ModelInfo
from finetooth_torchshared.whole_weights import WholeModelAdapter
from pydantic import Field, model_validator

from finetooth_lora.adapter import LoraOptions, LowRankOptions, b_shares
from finetooth_lora.sizes import added_parameters, numbers_for_backward, reached_weights


class ReLoraOptions(LowRankOptions):
    """Options of `relora`."""

    every: int = Field(default=1000, ge=1)
    """Optimizer steps until the low-rank update is merged and starts anew."""
    warm_up: int = Field(default=50, ge=0)
    """Steps after each restart in which the learning rate rises from near zero to that of the schedule."""
    keep_state: float = Field(default=0.01, ge=0, le=1)
    """Share of the optimizer state of A and B that a restart keeps: the numbers of largest magnitude, the same places
    in all moments. 0 resets all of it, and its step count."""

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> ReLoraOptions:
        if self.warm_up >= self.every:
            raise ValueError(
                f"warm_up ({self.warm_up}) is not less than every ({self.every}): no step has the full rate"
            )
        return self

    @property
    def plain(self) -> LoraOptions:
        """The options of the LoRA between two restarts."""
        return LoraOptions(
            rank=self.rank, alpha=self.alpha, dropout=self.dropout, targets=self.targets, rslora=self.rslora
        )


@dataclass(frozen=True)
class ReLoraAdapter(WholeModelAdapter):
    """A `protocols.Adapter` over peft's LoRA layers with merges and restarts.

    Merged weights are kept in fp32 even if the base computes in fewer bits, so that small additions are not rounded
    away.
    """

    overwrites = "relora merges into its base"

    options: ReLoraOptions

    @property
    def capabilities(self) -> frozenset[str]:
        """See `protocols.Adapter`."""
        return frozenset({"changes", "low_rank", "draws"} if self.options.dropout else {"changes", "low_rank"})

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """Number of parameters of the addition; exact for layers built like Llama's.

        Raises:
            PlanError: the recipe adds tokens, whose embeddings would not train.
        """
        if facts.new_tokens:
            raise PlanError(
                "model.added_tokens: adapter relora keeps their initial embeddings",
                action="choose adapter lora or full, which train them",
            )
        return added_parameters(self.options.targets, facts, self.options.rank, dora=False)

    def held_bytes(self, facts: ModelFacts, precision: str) -> int:
        """The addition, and the merged weights in fp32 if the model computes in fewer bits."""
        added = added_parameters(self.options.targets, facts, self.options.rank, dora=False)
        if precision == "fp32":
            return 4 * added
        return 2 * added + 4 * reached_weights(self.options.targets, facts)

    def kept_bytes(self, facts: ModelFacts, parameters: int) -> int:
        """The merged weights in fp32."""
        return 4 * reached_weights(self.options.targets, facts)

    def token_bytes(self, facts: ModelFacts, precision: str) -> float:
        """Numbers for backward with dropout, when peft's layers are called; see `sizes.numbers_for_backward`."""
        o = self.options
        numbers = numbers_for_backward(o.targets, facts, o.rank, dora=False, dropout=o.dropout) if o.dropout else 0
        return numbers * (4 if precision == "fp32" else 2)

    def rate_shares(self, names: Sequence[str]) -> Mapping[str, float]:
        """See `loraplus_ratio`."""
        return b_shares(self.options.loraplus_ratio, names)

    def rate_factor(self, step: int) -> float:
        """Less than 1 in the first steps after a restart; the first steps of the run follow only the schedule."""
        since = step % self.options.every
        if step < self.options.every or since >= self.options.warm_up:
            return 1.0
        return (since + 1) / (self.options.warm_up + 1)

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """See `layers.put_in`.

        Raises:
            RecipeError: a target matches nothing, or a module that is not linear, which cannot be merged into.
        """
        from finetooth_lora.layers import put_in
        from finetooth_lora.restarts import check_linear

        adapted = put_in(self.options.plain, model, facts, generator, rows=())
        check_linear(adapted)
        return adapted

    def at_step(self, model: Any, step: int, seed: int) -> None:
        """Give layers their merged weights in fp32, before the first step."""
        from finetooth_lora.restarts import keep_exact

        keep_exact(model)

    def after_step(self, model: Any, step: int, seed: int) -> Mapping[str, float]:
        """Merge and restart if due."""
        if step % self.options.every:
            return {}
        from finetooth_lora.restarts import restart

        return dict.fromkeys(restart(model, np.random.default_rng([seed, step])), self.options.keep_state)

    def held(self, model: Any) -> Mapping[str, Any]:
        """The merged weights."""
        from finetooth_lora.restarts import merged_weights

        return merged_weights(model)

    def low_rank(self, module: Any) -> LowRank | None:
        """See `layers.low_rank`."""
        from finetooth_lora.layers import low_rank

        return low_rank(self.options.plain, module)

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write a transformers folder with all weights, the addition merged."""
        from finetooth_lora.restarts import write

        write(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Restore the weights, with an addition of zero; needs memory for a second copy of the model.

        Raises:
            UserError: the artifact belongs to another model.
        """
        from finetooth_lora.restarts import take_back

        take_back(model, folder)
