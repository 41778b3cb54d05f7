"""An algorithm in 30 lines: of the answers to a prompt, the best one is learned and the others are left alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from finetooth_hooks import Context, Method, Rollout, hookimpl
from finetooth_rollouts.advantages import groups_of, rewards_of
from finetooth_rollouts.method import RolloutMethod
from finetooth_rollouts.options import RolloutOptions


def best_of_group(rollouts: Sequence[Rollout]) -> np.ndarray:
    """1 for the best answer of a group, if it is better than another one; 0 for the rest."""
    rewards, advantages = rewards_of(rollouts), np.zeros(len(rollouts))
    for group in groups_of(rollouts):
        if rewards[group].max() > rewards[group].min():
            advantages[group][rewards[group].argmax()] = 1.0
    return advantages


def build(options: RolloutOptions, context: Context) -> RolloutMethod:
    return RolloutMethod(options, context, best_of_group)


@hookimpl
def ft_methods() -> Iterable[Method]:
    example = {"num_generations": 2, "max_completion_length": 4, "skip_zero_advantage_batches": False}  # for its tests
    yield Method(name="best_of_group", build=f"{__name__}:build", summary="the best answer", example=example)
