"""Advantages: functions from scored rollouts to a number for each.

An algorithm is such a function. It is given the rollouts of a batch, those of a group next to each other, each with a
`reward` and the parts of it in `rewards`; it returns an advantage for each, or one for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from finetooth_hooks.errors import PluginError, RecipeError
from finetooth_hooks.rollouts import Rollout
from finetooth_toolbox import blame
from numpy.typing import NDArray

Floats = NDArray[np.float64]

AdvantagesFn = Callable[[Sequence[Rollout]], "Floats | Sequence[float] | Sequence[Sequence[float]]"]
"""From N scored rollouts to N advantages, or to N sequences with one for each token."""

EPSILON = 1e-4
"""Added to a deviation before it divides."""


def rewards_of(rollouts: Sequence[Rollout]) -> Floats:
    """(N,) rewards."""
    return np.array([float("nan") if rollout.reward is None else rollout.reward for rollout in rollouts])


def groups_of(rollouts: Sequence[Rollout]) -> list[slice]:
    """Indices of each group."""
    if not rollouts:
        return []
    starts = [i for i, rollout in enumerate(rollouts) if i == 0 or rollout.group != rollouts[i - 1].group]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(rollouts)], strict=True)]


def last_of_episodes(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """One rollout of each episode, the last; rollouts without an episode are their own."""
    after = [*rollouts[1:], None]
    pairs = zip(rollouts, after, strict=True)
    return [r for r, next_ in pairs if not r.episode or next_ is None or next_.episode != r.episode]


def for_each(algorithm: AdvantagesFn, rollouts: Sequence[Rollout]) -> list[float] | list[Sequence[float]]:
    """What an algorithm says of each rollout. An episode of several counts once: its last rollout is judged, and the
    others have the same advantage.

    Raises:
        RecipeError: the algorithm gives each token an advantage of its own, and turns are in several rollouts.
    """
    ends = last_of_episodes(rollouts)
    advantages = _checked(algorithm, algorithm(ends), ends)
    if len(ends) == len(rollouts):
        return advantages
    if any(np.ndim(advantage) for advantage in advantages):
        raise RecipeError(
            "method",
            "it gives each token an advantage of its own, and the renderer writes the turns of an episode apart",
            action="choose a renderer with the property extension",
        )
    of = {rollout.episode: advantage for rollout, advantage in zip(ends, advantages, strict=True)}
    return [of[rollout.episode] for rollout in rollouts]


def _checked(algorithm: AdvantagesFn, answer: Any, rollouts: Sequence[Rollout]) -> list[Any]:
    """
    Raises:
        PluginError: an algorithm gives something else than a finite number for each rollout, or for each of its tokens.
    """
    owner, place = blame.owner_of(algorithm), blame.where(algorithm)
    wanted = "return a finite number for each rollout, or one for each of its tokens"

    def wrong(problem: str) -> PluginError:
        return PluginError(owner, f"the advantages of method: {problem}{place}", action=wanted)

    if not isinstance(answer, Sequence | np.ndarray) or isinstance(answer, str):
        raise wrong(f"returned {blame.shown(answer)} not numbers")
    if len(answer) != len(rollouts):
        raise wrong(f"returned {len(answer)} numbers for {len(rollouts)} rollouts")
    for rollout, advantage in zip(rollouts, answer, strict=True):
        try:
            numbers = np.asarray(advantage, dtype=np.float64)
        except (TypeError, ValueError):
            raise wrong(f"gave {rollout.id!r} {blame.shown(advantage)} no number") from None
        if numbers.shape not in ((), (len(rollout.tokens),)):
            raise wrong(f"gave {rollout.id!r} an array of shape {numbers.shape}; it has {len(rollout.tokens)} tokens")
        if not np.isfinite(numbers).all():
            raise wrong(f"gave {rollout.id!r} {'NaN' if np.isnan(numbers).any() else 'an infinite number'}")
    return list(answer)


def deviation(values: Floats) -> float:
    """The standard deviation of a sample (with N - 1); 0 for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def centred(values: Floats) -> Floats:
    """Less their mean; exactly 0 where all are equal, which a mean may miss by its rounding."""
    return np.zeros_like(values) if len(values) and (values == values[0]).all() else values - values.mean()


def group_relative(
    rollouts: Sequence[Rollout], *, scale_rewards: Literal["group", "batch", "none"] = "group"
) -> Floats:
    """GRPO: A = (r - mean of the group) / (deviation + 1e-4) (Shao et al., 2024, arXiv:2402.03300, section 4.1.2).

    Args:
        scale_rewards: whose deviation divides; `none` is Dr. GRPO's (Liu et al., 2025, arXiv:2503.20783).
    """
    return _relative(rewards_of(rollouts), groups_of(rollouts), scale_rewards)


def _relative(rewards: Floats, groups: Sequence[slice], scale: Literal["group", "batch", "none"]) -> Floats:
    advantages = np.zeros_like(rewards)
    for group in groups:
        advantages[group] = centred(rewards[group])
        if scale == "group":
            advantages[group] /= deviation(rewards[group]) + EPSILON
    return advantages / (deviation(rewards) + EPSILON) if scale == "batch" else advantages


def decoupled(rollouts: Sequence[Rollout], weights: dict[str, float]) -> Floats:
    """GDPO: every reward is normalised in its group by itself, their weighted sum over the batch, so that a reward of
    small scale still tells answers apart (arXiv:2601.05242).

    Args:
        weights: of the rewards, by name. One that leaves a rollout out adds nothing to it.
    """
    groups, total = groups_of(rollouts), np.zeros(len(rollouts))
    for name, weight in weights.items():
        scores = np.array([np.nan if rollout.rewards[name] is None else rollout.rewards[name] for rollout in rollouts])
        for group in groups:
            of, judged = scores[group], ~np.isnan(scores[group])
            if judged.any():
                known = of[judged]
                total[group][judged] += weight * centred(known) / (deviation(known) + EPSILON)
    return centred(total) / (deviation(total) + EPSILON)


def leave_one_out(rollouts: Sequence[Rollout]) -> Floats:
    """RLOO: A = r - mean of the group's other rewards; 0 for a group of one (Ahmadian et al., 2024,
    arXiv:2402.14740)."""
    rewards, advantages = rewards_of(rollouts), np.zeros(len(rollouts))
    for group in groups_of(rollouts):
        of = rewards[group]
        if len(of) > 1:
            advantages[group] = centred(of) * len(of) / (len(of) - 1)
    return advantages


def normalised_over_batch(rollouts: Sequence[Rollout], *, baseline: bool = False) -> Floats:
    """REINFORCE++: A = (r - mean of the batch) / deviation of the batch (Hu, 2025, arXiv:2501.03262).

    Args:
        baseline: take the mean of its group from every reward first (REINFORCE++-baseline).
    """
    values = rewards_of(rollouts)
    if baseline:
        values = _relative(values, groups_of(rollouts), "none")
    return centred(values) / (deviation(values) + EPSILON)
