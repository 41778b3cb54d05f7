"""The log-likelihood of the chosen answers, to be added to a preference loss."""

from __future__ import annotations

from finetooth_hooks import Context, Contribution, LossData, LossFn, LossResult, LossState, NoOptions, Outputs
from finetooth_hooks import arrays as xp

from finetooth_preflosses.sums import Array


def sft(options: NoOptions, context: Context) -> LossFn:
    return likelihood


def likelihood(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """-sum(w log p) / sum(w) over the unmasked targets, w the field `weights`: methods give a rejected answer the
    weight 0, so it is the mean over the targets of chosen answers."""
    return LossResult({"sft": negative_log_likelihood(outputs, data)}, {}, state)


def negative_log_likelihood(outputs: Outputs, data: LossData, weight: float = 1.0) -> Contribution:
    """The component of the log-likelihood."""
    total: Array = -xp.sum(data.fields["weights"] * xp.where(data.mask, outputs["logprobs"], 0.0))
    return Contribution(total, per="weights", weight=weight)
