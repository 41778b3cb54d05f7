"""Numbers of a batch of rollouts, under the names that TRL gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from finetooth_hooks.errors import EngineError
from finetooth_hooks.rollouts import Rollout

from finetooth_rollouts.advantages import deviation, groups_of, last_of_episodes, rewards_of

GAP = "sampling/sampling_logp_difference/mean"
"""The metric of how far sampler and trainer are apart."""


def batch_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Rewards, their parts, and lengths, of episodes once. A deviation is that of a sample; of tokens those count in
    lengths that the policy wrote."""
    ends = last_of_episodes(rollouts)
    rewards, groups = rewards_of(ends), groups_of(ends)
    lengths = np.array([rollout.length for rollout in rollouts], dtype=np.float64)
    ended = lengths[[rollout.outcome != "length" for rollout in rollouts]]
    same = [bool((rewards[group] == rewards[group][0]).all()) for group in groups]
    numbers = {
        "reward": float(rewards.mean()),
        "reward_std": float(np.mean([deviation(rewards[group]) for group in groups])),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": 1 - len(ended) / len(lengths),
        "completions/mean_terminated_length": float(ended.mean()) if len(ended) else 0.0,
        "completions/min_terminated_length": float(ended.min()) if len(ended) else 0.0,
        "completions/max_terminated_length": float(ended.max(initial=0.0)),
    }
    if len(groups) < len(ends):  # of one answer nothing can be told
        numbers["frac_reward_zero_std"] = sum(same) / len(same)
    for name in rollouts[0].rewards:
        parts = np.array([score for rollout in ends if (score := rollout.rewards[name]) is not None])
        if len(parts):
            numbers |= {f"rewards/{name}/mean": float(parts.mean()), f"rewards/{name}/std": deviation(parts)}
    for name in sorted({name for rollout in ends for name in rollout.metrics}):
        numbers[f"environment/{name}"] = float(np.mean([rollout.metrics.get(name, 0.0) for rollout in ends]))
    return numbers


def gap_metrics(drawn: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """How far the log-probabilities that tokens were drawn by are from those of the trainer's own pass."""
    apart = np.abs(np.asarray(drawn, dtype=np.float64) - np.asarray(own, dtype=np.float64))
    return {
        GAP: float(apart.mean()),
        "sampling/sampling_logp_difference/max": float(apart.max()),
    }


SMALL_IS_WORSE = frozenset({"sampling/effective_sample_size", "sampling/importance_sampling_ratio/min"})
"""Numbers below of which a small one is a bad sign; of the others a large one is."""


def ratio_metrics(drawn: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """What the weights w = exp(trainer's - sampler's log-probability) of drawn tokens say of how far the two are apart:
    estimates of KL(sampler || trainer), by k3 (Schulman, 2020), and of chi^2(trainer || sampler) = E[w^2] - 1, and the
    share of the tokens that they are worth, (sum w)^2 / (n sum w^2) (Kish, 1965)."""
    log_w = np.asarray(own, dtype=np.float64) - np.asarray(drawn, dtype=np.float64)
    w = np.exp(np.minimum(log_w, 300.0))  # whose square is a number
    return {
        "sampling/kl": float(np.mean(np.expm1(np.minimum(log_w, 300.0)) - log_w)),
        "sampling/chi2": float(np.mean(w**2) - 1.0),
        "sampling/effective_sample_size": float(np.sum(w) ** 2 / (len(w) * np.sum(w**2))),
        "sampling/importance_sampling_ratio/min": float(w.min()),
        "sampling/importance_sampling_ratio/mean": float(w.mean()),
        "sampling/importance_sampling_ratio/max": float(w.max()),
    }


def staleness(rollouts: Sequence[Rollout], version: int, bound: int) -> dict[str, float]:
    """Optimizer steps between the weights that drew tokens and those that begin to train on them.

    Args:
        version: of the weights now.
        bound: on it.

    Raises:
        EngineError: weights that are not there yet are said to have drawn a token, or some beyond the bound.
    """
    ages = np.array([version - of for r in rollouts for of in r.of_policy(r.versions)], dtype=np.float64)
    if ages.min() < 0 or ages.max() > bound:
        stated = version - (ages.min() if ages.min() < 0 else ages.max())
        raise EngineError(
            f"method.sampler: it sampled a token at weights version {stated:g}, and the trainer is at {version}: 0 to "
            f"{bound} versions may lie between them",
            action="see that the sampler says which weights it has, or raise method.max_staleness",
        )
    return {"staleness/mean": float(ages.mean()), "staleness/max": float(ages.max())}
