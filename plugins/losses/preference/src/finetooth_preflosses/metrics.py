"""Metrics of pairs, with the usual names of DPO."""

from __future__ import annotations

from finetooth_hooks import Metric
from finetooth_hooks import arrays as xp

from finetooth_preflosses.sums import Array, Pairs


def pair_metrics(pairs: Pairs, chosen: Array, rejected: Array) -> dict[str, Metric]:
    """Means over pairs.

    Args:
        chosen, rejected: (P,) rewards.

    Returns:
        `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies` (share of pairs whose chosen
        answer has the higher reward), `logps/chosen`, `logps/rejected` (sums over an answer, in nats).
    """
    ahead = xp.astype_like(chosen > rejected, pairs.chosen)
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": ahead,
        "logps/chosen": pairs.chosen,
        "logps/rejected": pairs.rejected,
    }
    return {name: Metric(xp.stop_gradient(pairs.sum(of)), xp.stop_gradient(pairs.count)) for name, of in values.items()}
