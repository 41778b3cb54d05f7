"""Cross entropy of step labels (Lightman et al., 2023, arXiv:2305.20050, section 2.6; Uesato et al., 2022,
arXiv:2211.14275). With v the value at the end of a step and y its label, 1 for right:

    L = -y log sigmoid(v) - (1 - y) log sigmoid(-v)        mean over the ends of steps

That is the cross entropy of a token classifier with two labels whose logits are 0 and v.
"""

from __future__ import annotations

from finetooth_hooks import Contribution, LossData, LossFn, LossResult, LossState, Metric, Outputs
from finetooth_hooks import arrays as xp


def build() -> LossFn:
    """Builder of the loss, which has no options."""
    return step_cross_entropy


def step_cross_entropy(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Computes binary cross-entropy at the end of each step.

    Args:
        outputs: `values` (S, T).
        data: the mask is true at the ends of steps; field `labels` (S, T), 0 to 1.

    Returns:
        One contribution, `step_cross_entropy`, per end of a step.
    """
    values = xp.where(data.mask, outputs["values"], 0.0)
    counts = xp.astype_like(data.mask, values)
    right = xp.where(data.mask, data.fields["labels"], 0.0)
    wrong = counts - right
    total = -xp.sum(right * xp.log_sigmoid(values) + wrong * xp.log_sigmoid(-values))
    good = xp.astype_like(data.mask & (right > 0.5), values)
    bad = counts - good
    called_good = xp.astype_like(values > 0, values)
    found_good, found_bad = xp.sum(good * called_good), xp.sum(bad * (1.0 - called_good))
    return LossResult(
        {"step_cross_entropy": Contribution(total, per="tokens")},
        {
            "steps/accuracy": Metric(found_good + found_bad, xp.sum(counts)),
            "steps/accuracy_right": Metric(found_good, xp.sum(good)),
            "steps/accuracy_wrong": Metric(found_bad, xp.sum(bad)),
        },
    )
