"""What the held-out rows say, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from finetooth_methods.intervals import wilson
from numpy.typing import NDArray

DRAWS = 4000
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t for 95 %, by the number of values."""

Numbers = NDArray[np.float64]


def right(margins: Numbers) -> Numbers:
    """1 where the chosen answer is ahead, 0.5 where they tie."""
    return (margins > 0) + 0.5 * (margins == 0)


def of_pairs(
    margins: Sequence[float], lengths: Sequence[float], prompts: Sequence[int], *, longer_is_better: bool
) -> dict[str, Any]:
    """Accuracy of P pairs, and of the rule that looks at nothing but lengths.

    Pairs of one prompt depend on each other. Where there are such, intervals resample whole prompts (the percentile
    bootstrap); else the accuracy's is Wilson's.

    Args:
        margins: chosen less rejected reward.
        lengths: chosen less rejected length, in tokens.
        prompts: number of each pair's prompt.
        longer_is_better: what the rule says; it is found on the training rows.
    """
    model = right(np.asarray(margins, dtype=np.float64))
    rule = right(np.asarray(lengths, dtype=np.float64) * (1 if longer_is_better else -1))
    each = np.unique(np.asarray(prompts), return_inverse=True)[1]
    drawn = _draws(np.stack([model, rule, model - rule]), each)
    alone = len(set(prompts)) == len(prompts)
    low, high = wilson(float(model.mean()), len(model)) if alone else drawn[0]
    return {
        "pairs": len(model),
        "prompts": len(set(prompts)),
        "accuracy": float(model.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "length_rule": "longer" if longer_is_better else "shorter",
        "length_accuracy": float(rule.mean()),
        "ahead_of_length": float((model - rule).mean()),
        "ahead_low": drawn[2][0],
        "ahead_high": drawn[2][1],
        "margin": float(np.mean(margins)),
    }


def _draws(values: Numbers, groups: NDArray[np.intp]) -> list[tuple[float, float]]:
    """The 95 % interval of the mean of each row of (K, P) values, resampling whole groups."""
    count = groups.max() + 1
    sums = np.stack([np.bincount(groups, weights=row, minlength=count) for row in values])
    sizes = np.bincount(groups, minlength=count)
    taken = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    means = (taken @ sums.T) / (taken @ sizes)[:, None]
    return [(float(low), float(high)) for low, high in np.quantile(means, [0.025, 0.975], axis=0).T]


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """The mean of the differences first - second and its 95 % interval (Student's t over the pairs).

    Raises:
        ValueError: other than 2 to 10 pairs.
    """
    away = np.asarray(first) - np.asarray(second)
    if len(first) != len(second) or len(away) not in T_95:
        raise ValueError(f"{len(first)} and {len(second)} values cannot be paired")
    half = T_95[len(away)] * float(away.std(ddof=1)) / len(away) ** 0.5
    mean = float(away.mean())
    return {"runs": len(away), "difference": mean, "low": mean - half, "high": mean + half}
