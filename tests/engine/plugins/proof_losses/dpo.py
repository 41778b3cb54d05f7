"""DPO: direct preference optimisation (Rafailov et al., 2023, arXiv:2305.18290, eq. 7), with label smoothing.

With r = beta * (log pi(y|x) - log pi_ref(y|x)) of the chosen answer w and the rejected answer l:

    L = -(1 - s) log sigmoid(r_w - r_l) - s log sigmoid(r_l - r_w)
"""

from __future__ import annotations

from functools import partial

from finetooth_hooks import Context, Contribution, LossData, LossFn, LossResult, LossState, Metric, Options, Outputs
from finetooth_hooks import arrays as xp
from pydantic import Field


class DpoOptions(Options):
    """Options of DPO."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference model."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs whose labels are assumed to be swapped."""


def dpo(outputs: Outputs, data: LossData, state: LossState, *, beta: float, label_smoothing: float) -> LossResult:
    """Pairs stand next to each other, the chosen one first."""
    rewards = beta * xp.sum(outputs["logprobs"] - outputs["logprobs@reference"], axis=1)
    chosen, rejected = rewards[0::2], rewards[1::2]
    margins = chosen - rejected
    losses = -(1.0 - label_smoothing) * xp.log_sigmoid(margins) - label_smoothing * xp.log_sigmoid(-margins)
    pairs = float(margins.shape[0])
    return LossResult(
        {"dpo": Contribution(xp.sum(losses), per="groups")},
        {
            "rewards/margin": Metric(xp.sum(margins), pairs),
            "rewards/accuracy": Metric(xp.sum(margins > 0), pairs),
            "rewards/chosen": Metric(xp.sum(chosen), pairs),
        },
        state,
    )


def build(options: DpoOptions, context: Context) -> LossFn:
    """The loss with its options bound."""
    return partial(dpo, beta=options.beta, label_smoothing=options.label_smoothing)
