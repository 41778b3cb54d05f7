"""Rewards of episodes: the environment's own, and those of the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Task
from finetooth_hooks.environments import Environment
from finetooth_hooks.rollouts import Rollout

from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.scoring import WeightedReward, build_rewards, scored, weights_by_name


@dataclass(frozen=True)
class WeightedEnvironment:
    """An environment as a recipe picks it.

    Attributes:
        name: among the rewards of the recipe.
    """

    name: str
    environment: Environment
    weight: float


def build_judges(
    context: Context, options: RolloutOptions
) -> tuple[WeightedEnvironment | None, tuple[WeightedReward, ...]]:
    """The environment, if there is one, and the rewards.

    Raises:
        RecipeError: a weight is not a number.
    """
    pick = options.environment
    if pick is None:
        return None, build_rewards(context, options.judges, "method.rewards")
    rewards = build_rewards(context, options.judges[1:], "method.rewards")
    name, weight = next(iter(weights_by_name([pick], "method.environment").items()))
    picked: dict[str, Any] = {"name": pick} if isinstance(pick, str) else dict(pick)
    picked.pop("weight", None)
    built = context.build("environment", picked, setting="method.environment")
    return WeightedEnvironment(name, built, weight), rewards


def judged(
    episodes: Sequence[Sequence[Rollout]], tasks: Mapping[str, Task], rewards: Iterable[WeightedReward],
    environment: WeightedEnvironment, failed: str | float,
) -> list[Rollout]:  # fmt: skip
    """All rollouts of the episodes with their rewards. Those of the recipe judge the last turn of an episode that did
    not fail; all rollouts of an episode have the same.

    Args:
        episodes: with what the environment gave, in `reward`.
        failed: the reward of an episode that failed, if it is a number; else it has none.
    """
    rewards = tuple(rewards)
    whole = [episode[-1] for episode in episodes if not episode[-1].failure]
    by_rewards = iter(scored(whole, tasks, rewards) if rewards else whole)
    rollouts: list[Rollout] = []
    for episode in episodes:
        last = episode[-1]
        own = last.reward
        parts: dict[str, float | None] = {environment.name: own}
        reward = None if own is None else environment.weight * own
        if last.failure:
            parts |= {reward.name: None for reward in rewards}
            reward = None if isinstance(failed, str) else failed
        elif rewards:
            other = next(by_rewards)
            parts |= other.rewards
            known = [value for value in (reward, other.reward) if value is not None]
            refused = any(entry.refuses(other.rewards) for entry in rewards)
            reward = sum(known) if known and not refused else None
        rollouts += [replace(rollout, rewards=parts, reward=reward) for rollout in episode]
    return rollouts
