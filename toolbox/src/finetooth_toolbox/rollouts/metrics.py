"""Numbers of a batch of rollouts, under the names that TRL gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from finetooth_hooks.rollouts import Rollout

from finetooth_toolbox.rollouts.advantages import deviation, groups_of, last_of_episodes, rewards_of

GAP = "sampling/sampling_logp_difference/mean"
"""The metric of how far sampler and trainer are apart."""


def batch_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Rewards, their parts, and lengths, of episodes once. A deviation is that of a sample; of tokens those count in
    lengths that the policy wrote."""
    ends = last_of_episodes(rollouts)
    rewards, groups = rewards_of(ends), groups_of(ends)
    lengths = np.array([one.length for one in rollouts], dtype=np.float64)
    ended = lengths[[one.outcome != "length" for one in rollouts]]
    same = [bool((rewards[group] == rewards[group][0]).all()) for group in groups]
    found = {
        "reward": float(rewards.mean()),
        "reward_std": float(np.mean([deviation(rewards[group]) for group in groups])),
        "frac_reward_zero_std": sum(same) / len(same),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": 1 - len(ended) / len(lengths),
        "completions/mean_terminated_length": float(ended.mean()) if len(ended) else 0.0,
    }
    for name in rollouts[0].rewards:
        parts = np.array([score for one in ends if (score := one.rewards[name]) is not None])
        if len(parts):
            found |= {f"rewards/{name}/mean": float(parts.mean()), f"rewards/{name}/std": deviation(parts)}
    for name in sorted({name for one in ends for name in one.metrics}):
        found[f"environment/{name}"] = float(np.mean([one.metrics.get(name, 0.0) for one in ends]))
    return found


def gap_metrics(drawn: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """How far the log-probabilities that tokens were drawn by are from those of the trainer's own pass."""
    apart = np.abs(np.asarray(drawn, dtype=np.float64) - np.asarray(own, dtype=np.float64))
    return {
        GAP: float(apart.mean()),
        "sampling/sampling_logp_difference/max": float(apart.max()),
    }
