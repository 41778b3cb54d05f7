"""Healthy ranges of the metrics of features, and the action outside of them.

| metric | healthy | told when, over the last 20 steps, its mean |
|---|---|---|
| `ebft/alignment` | 0.3 to 0.9, rising | is 0.1 or less |
| `ebft/diversity` | 0.01 to 0.1 with whitening | is 1 or more; without whitening, 0.95 of what equal answers have |
| `ebft/cfm_loss` | below 10, falling | is 100 or more |
| `ebft/reward` | rising | is -1 or less |
| `ebft/advantages_std` | not 0 | is 0 |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetooth_rollouts.health import RANGES, Range

from finetooth_ebft.features import QUARTERS, Pooling


def healthy(layers: Sequence[float], pooling: Pooling, whitening: bool) -> Mapping[str, Range]:
    """The ranges of a method that rewards features; its other metrics have those of all online methods.

    Args:
        layers: depths of the features.
    """
    length = len(layers) * (len(QUARTERS) if pooling == "concat" else 1)  # squared norm: each part has norm 1
    own = {
        "ebft/alignment": Range(
            low=0.1,
            too_low="0.3 to 0.9 and rising is healthy: answers share little with their references: check these, "
            "raise method.ce_coef to 0.03, or lower optimizer.learning_rate",
        ),
        "ebft/diversity": Range(
            high=1.0 if whitening else 0.95 * length,
            too_high="the answers to a prompt are nearly the same: raise method.diversity_coef or temperature, or "
            "lower optimizer.learning_rate",
        ),
        "ebft/cfm_loss": Range(
            high=100.0, too_high="below 10 and falling is healthy: training is unstable; lower optimizer.learning_rate"
        ),
        "ebft/reward": Range(
            low=-1.0,
            too_low="rising is healthy: the penalty for similarity outweighs alignment; lower method.diversity_coef",
        ),
        "ebft/advantages_std": Range(
            low=0.0,
            too_low="no answer is better than another, so nothing is learned: raise method.temperature, or set "
            "method.use_whitening",
        ),
    }
    # a reward of features may be negative
    return {**{name: of for name, of in RANGES.items() if name != "reward"}, **own}
