"""Rewards of rollouts: several, each with a weight, any of which may leave a rollout out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Task
from finetooth_hooks.entries import Reward as RewardEntry
from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.evaluators import SAMPLED_COLUMNS
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Reward
from finetooth_hooks.rollouts import Rollout

LABEL = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class WeightedReward:
    """A reward as a recipe picks it.

    Attributes:
        name: among the rewards of the recipe: its label, else that of its entry, numbered where it comes twice.
        concurrent: it may score while the engine trains.
        required: an answer that it leaves out does not train, whatever the others say.
    """

    name: str
    reward: Reward
    weight: float
    concurrent: bool = True
    required: bool = False

    def refuses(self, rewards: Mapping[str, float | None]) -> bool:
        """Whether it keeps an answer with these rewards, by name, from being trained."""
        return self.required and rewards[self.name] is None


def build_rewards(context: Context, picks: Sequence[Pick], setting: str) -> tuple[WeightedReward, ...]:
    """Builds the rewards that a recipe picks, each with its weight.

    Args:
        picks: names, or mappings with `name`, options and perhaps a `weight`, a `label` and `required`.

    Raises:
        RecipeError: a weight is not a number, or `required` neither true nor false.
    """
    rewards: list[WeightedReward] = []
    for i, (pick, (name, weight)) in enumerate(zip(picks, weights_by_name(picks, setting).items(), strict=True)):
        options: dict[str, Any] = {"name": pick} if isinstance(pick, str) else dict(pick)
        required = options.pop("required", False)
        if not isinstance(required, bool):
            raise RecipeError(
                f"{setting}.{i}.required", f"{required!r} is not true or false", action="give one of them"
            )
        options = {key: value for key, value in options.items() if key not in ("weight", "label")}
        reward = context.build("reward", options, setting=f"{setting}.{i}")
        entry = context.catalog.get("reward", str(options["name"]), setting=f"{setting}.{i}").entry
        concurrent = isinstance(entry, RewardEntry) and entry.concurrent
        rewards.append(WeightedReward(name, reward, weight, concurrent, required))
    return tuple(rewards)


def check_columns(rewards: Iterable[WeightedReward], columns: Iterable[str]) -> None:
    """Check that rows have the columns for rewards, before a model answers.

    Args:
        columns: of all rows together.

    Raises:
        DataError: a column that a reward needs is in no row.
    """
    known = set(columns)
    for reward in rewards:
        for name in getattr(reward.reward, "needed_columns", ()):
            if name not in known and name not in SAMPLED_COLUMNS:
                there = ", ".join(sorted(known)) or "none"
                raise DataError(
                    f"reward {reward.name}",
                    f"it needs a column {name!r}, and no training row has one; the rows have: {there}",
                    action="name the column in the reward's options, or in its function, as the rows do",
                )


def weights_by_name(picks: Sequence[Pick], setting: str = "method.rewards") -> dict[str, float]:
    """Weights of rewards by their labels, else their names, in their order; one that comes again is numbered,
    `length#2`.

    Raises:
        RecipeError: a weight is not a number, or a label not a text.
    """
    weights: dict[str, float] = {}
    for i, pick in enumerate(picks):
        weight = 1.0 if isinstance(pick, str) else pick.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) < float("inf"):
            raise RecipeError(
                f"{setting}.{i}.weight", f"{weight!r} is not a number", action="give one, or leave it out"
            )
        name = str(pick if isinstance(pick, str) else pick.get("name")).rpartition(":")[2]
        label = name if isinstance(pick, str) else pick.get("label", name)
        if not isinstance(label, str) or not LABEL.fullmatch(label):
            action = "give a word of letters, digits, _ and -, or leave it out"
            raise RecipeError(f"{setting}.{i}.label", f"{label!r} cannot be a label", action=action)
        same = sum(taken.partition("#")[0] == label for taken in weights)
        weights[f"{label}#{same + 1}" if same else label] = float(weight)
    return weights


def scored(rollouts: Sequence[Rollout], tasks: Mapping[str, Task], rewards: Iterable[WeightedReward]) -> list[Rollout]:
    """The rollouts with their rewards. `reward` is the weighted sum of those that did not leave a rollout out, and None
    where all did, or one that is required; 0 where nothing judges.

    Args:
        tasks: by the rollouts' ids.

    Raises:
        DataError: a row has a column by a name that rollouts need.
    """
    rewards, rows = tuple(rewards), [tasks[rollout.id] for rollout in rollouts]
    prompts, answers = [prompt_text(task) for task in rows], [rollout.text for rollout in rollouts]
    names = sorted({name for task in rows for name in task.columns})
    columns = {name: [task.columns.get(name) for task in rows] for name in names} | _sampled(rollouts, rows)
    parts = {reward.name: reward.reward(prompts, answers, columns) for reward in rewards}
    weights = {reward.name: reward.weight for reward in rewards}
    results = []
    for i, rollout in enumerate(rollouts):
        of = {name: scores[i] for name, scores in parts.items()}
        known = [weights[name] * score for name, score in of.items() if score is not None]
        counts = (known or not parts) and not any(reward.refuses(of) for reward in rewards)
        results.append(replace(rollout, rewards=of, reward=sum(known) if counts else None))
    return results


def _sampled(rollouts: Sequence[Rollout], tasks: Sequence[Task]) -> dict[str, list[Any]]:
    """The columns that rollouts have in addition to those of their rows, `protocols.Reward`.

    Raises:
        DataError: a row has one of that name.
    """
    told = sorted({name for rollout in rollouts if not rollout.episode for name in rollout.metrics})
    for rollout, task in zip(rollouts, tasks, strict=True):
        taken = sorted(set(task.columns) & {*SAMPLED_COLUMNS, *told})
        if taken:
            problem = f"the row has a column {taken[0]!r}, which for rewards is of what was sampled"
            raise DataError(rollout.id, problem, action="give it another name")
    return {
        **{name: [rollout.metrics.get(name) for rollout in rollouts] for name in told},
        "row_id": [rollout.id for rollout in rollouts],
        "conversation": [_conversation(task) for task in tasks],
        "completion_ids": [list(rollout.tokens) for rollout in rollouts],
        "outcome": [rollout.outcome for rollout in rollouts],
        "version": [max(rollout.versions, default=0) for rollout in rollouts],
    }


def _conversation(task: Task) -> list[dict[str, str]] | None:
    """The messages of a prompt that the row gives as messages."""
    if task.from_text or isinstance(task.prompt, str):
        return None
    return [{"role": message.role, "content": message.content} for message in task.prompt]


def prompt_text(task: Task) -> str:
    """The prompt for rewards: the last message."""
    return task.prompt if isinstance(task.prompt, str) else task.prompt[-1].content
