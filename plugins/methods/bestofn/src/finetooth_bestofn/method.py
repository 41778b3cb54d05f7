"""The method `best_of_n` trains on the best answers of each group."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.advantages import Floats, groups_of, rewards_of
from finetooth_rollouts.data import learned
from finetooth_rollouts.method import RolloutMethod
from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.token_weights import LossType
from pydantic import Field, model_validator


class BestOfNOptions(RolloutOptions):
    """Options of `best_of_n`."""

    keep: int = Field(default=1, ge=1)
    """Most answers of a group to train on, the best ones."""
    threshold: float | None = None
    """Train only on answers whose reward is above this. Left out, on any."""
    keep_equal: bool = False
    """Whether to train on a group whose rewards are all equal; with a `threshold` it trains in any case."""
    loss_type: LossType = "bnpo"
    """How tokens are weighted: all equally, or with `grpo` by the mean of each answer."""

    @model_validator(mode="after")
    def _some(self) -> BestOfNOptions:
        if self.keep >= self.num_generations and self.threshold is None and self.num_generations > 1:
            raise ValueError(
                f"keep is {self.keep} and num_generations is {self.num_generations}, so every answer would train: "
                "lower keep, or set threshold"
            )
        if self.num_generations == 1 and self.threshold is None:
            raise ValueError(
                "num_generations is 1, so there is nothing to choose from: set it to 2 or more, or set threshold"
            )
        if self.beta or self.entropy_coef or self.entropy_target is not None or self.top_entropy_quantile < 1:
            raise ValueError(
                "beta, entropy_coef, entropy_target and top_entropy_quantile act only in losses with an "
                "importance ratio, and best_of_n has none: leave them out"
            )
        return self


def best(rollouts: Sequence[Rollout], *, keep: int, threshold: float | None, keep_equal: bool) -> Floats:
    """1 for the `keep` best answers of each group, the earlier ones of equal reward; 0 for the rest (RAFT: Dong et al.,
    2023, arXiv:2304.06767, section 3; expert iteration: Anthony et al., 2017, arXiv:1705.08439)."""
    rewards, weights = rewards_of(rollouts), np.zeros(len(rollouts))
    for group in groups_of(rollouts):
        of = rewards[group]
        if threshold is None and not keep_equal and (of == of[0]).all():
            continue
        order = np.argsort(-of, kind="stable")[:keep]
        weights[group][[i for i in order if threshold is None or of[i] > threshold]] = 1.0
    return weights


class BestOfN(RolloutMethod):
    """Trains on the best rollouts as on answers of a data set: all tokens have the same weight, at temperature 1.
    Sampling and scoring are those of all online methods."""

    own_ratios = False

    def __init__(self, options: BestOfNOptions, context: Context) -> None:
        algorithm = partial(best, keep=options.keep, threshold=options.threshold, keep_equal=options.keep_equal)
        super().__init__(options, context, algorithm, loss=context.loss("cross_entropy", setting="method"))

    def training_data(self, engine: Engine, rollouts: Sequence[Rollout], weights: Sequence[float]) -> list[Datum]:
        """Prompts with their answers; the loss divides by the sum of the weights."""
        pairs = zip(rollouts, weights, strict=True)
        return [learned(rollout, weight if any(rollout.advantages) else 0.0) for rollout, weight in pairs]
