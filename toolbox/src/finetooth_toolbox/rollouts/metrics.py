"""Numbers of a batch of rollouts, under the names that TRL gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from finetooth_hooks.rollouts import Rollout

from finetooth_toolbox.rollouts.advantages import deviation, groups_of, rewards_of


def batch_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Rewards, their parts, and lengths. A deviation is that of a sample; tokens count in lengths."""
    rewards, groups = rewards_of(rollouts), groups_of(rollouts)
    lengths = np.array([len(one.tokens) for one in rollouts], dtype=np.float64)
    ended = lengths[[one.outcome == "stop" for one in rollouts]]
    same = [bool((rewards[group] == rewards[group][0]).all()) for group in groups]
    found = {
        "reward": float(rewards.mean()),
        "reward_std": float(np.mean([deviation(rewards[group]) for group in groups])),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": 1 - len(ended) / len(lengths),
        "completions/mean_terminated_length": float(ended.mean()) if len(ended) else 0.0,
    }
    if len(groups) < len(rollouts):  # of one answer nothing can be told
        found["frac_reward_zero_std"] = sum(same) / len(same)
    for name in rollouts[0].rewards:
        parts = np.array([score for one in rollouts if (score := one.rewards[name]) is not None])
        if len(parts):
            found |= {f"rewards/{name}/mean": float(parts.mean()), f"rewards/{name}/std": deviation(parts)}
    return found


def gap_metrics(drawn: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """How far the log-probabilities that tokens were drawn by are from those of the trainer's own pass."""
    apart = np.abs(np.asarray(drawn, dtype=np.float64) - np.asarray(own, dtype=np.float64))
    return {
        "sampling/sampling_logp_difference/mean": float(apart.mean()),
        "sampling/sampling_logp_difference/max": float(apart.max()),
    }
