"""The methods, with their options and estimators of advantages."""

from __future__ import annotations

from functools import partial
from typing import Literal

from finetooth_hooks.context import Context
from finetooth_rollouts.advantages import decoupled, group_relative, leave_one_out, normalised_over_batch
from finetooth_rollouts.method import RolloutMethod
from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.scoring import weights_by_name
from pydantic import model_validator


class GrpoOptions(RolloutOptions):
    """Options of `grpo`."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Which standard deviation divides a reward after the mean of its group is subtracted: that of the group, of the
    batch, or none (Dr. GRPO)."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Whether several rewards are added up and then normalised, or each is first normalised within its group (GDPO)."""

    @model_validator(mode="after")
    def _one_way(self) -> GrpoOptions:
        if self.multi_objective_aggregation == "normalize_then_sum" and "scale_rewards" in self.model_fields_set:
            raise ValueError("normalize_then_sum scales rewards in its own way: leave scale_rewards out")
        if self.num_generations < 2:
            raise ValueError(
                "num_generations is 1, and the method compares the answers to a prompt: set it to 2 or more"
            )
        return self


class RlooOptions(RolloutOptions):
    """Options of `rloo`."""

    @model_validator(mode="after")
    def _several(self) -> RlooOptions:
        if self.num_generations < 2:
            raise ValueError(
                "num_generations is 1, and the method compares the answers to a prompt: set it to 2 or more"
            )
        return self


class ReinforcePlusPlusOptions(RolloutOptions):
    """Options of `reinforce++`."""

    baseline: bool = False
    """Whether to subtract the mean of its group from a reward first (REINFORCE++-baseline)."""


def grpo(options: GrpoOptions, context: Context) -> RolloutMethod:
    """Group relative policy optimisation (Shao et al., 2024, arXiv:2402.03300)."""
    if options.multi_objective_aggregation == "normalize_then_sum":
        weights = weights_by_name(options.judges)
        return RolloutMethod(options, context, partial(decoupled, weights=weights))
    return RolloutMethod(options, context, partial(group_relative, scale_rewards=options.scale_rewards))


def rloo(options: RlooOptions, context: Context) -> RolloutMethod:
    """REINFORCE leave one out (Ahmadian et al., 2024, arXiv:2402.14740)."""
    return RolloutMethod(options, context, leave_one_out)


def reinforce_plus_plus(options: ReinforcePlusPlusOptions, context: Context) -> RolloutMethod:
    """REINFORCE++ (Hu, 2025, arXiv:2501.03262)."""
    return RolloutMethod(options, context, partial(normalised_over_batch, baseline=options.baseline))
