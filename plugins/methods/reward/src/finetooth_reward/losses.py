"""Losses over the scores of a scalar head.

`bradley_terry` (Bradley and Terry, 1952; as in Ouyang et al., 2022, arXiv:2203.02155, eq. 1). With r the score of an
answer, w the chosen and l the rejected one, m a margin (Touvron et al., 2023, arXiv:2307.09288, eq. 2) and c a
coefficient that holds the scores around 0 (Eisenstein et al., 2023, arXiv:2312.09244, section 4):

    L = -log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2        mean over pairs

`score_mse`: (r - label)^2, mean over texts.
"""

from __future__ import annotations

from functools import partial

from finetooth_hooks import Contribution, LossData, LossFn, LossResult, LossState, Metric, Options, Outputs
from finetooth_hooks import arrays as xp
from pydantic import Field


class BradleyTerryOptions(Options):
    """Options of `bradley_terry`."""

    center_rewards_coefficient: float = Field(default=0.0, ge=0)
    """How strongly the mean score of a pair is pulled to 0, which pairs alone leave open; 0.01 is common."""


def build_bradley_terry(options: BradleyTerryOptions) -> LossFn:
    """The loss with its coefficient."""
    return partial(bradley_terry, centre=options.center_rewards_coefficient)


def bradley_terry(outputs: Outputs, data: LossData, state: LossState, *, centre: float) -> LossResult:
    """Computes the loss of pairs of adjacent answers, the chosen one first.

    Args:
        outputs: `scores` (S,).
        data: scalars `margin` (S,), of which only the chosen answer's is used.
        centre: c above.

    Returns:
        Contributions `bradley_terry` and, with a coefficient, `center`, both per pair.
    """
    scores, counts = outputs["scores"], xp.astype_like(xp.sum(data.mask, axis=1) > 0, outputs["scores"])
    chosen, rejected, real = scores[0::2], scores[1::2], counts[0::2] * counts[1::2]
    margins = chosen - rejected
    # a padding pair of a rank with fewer data has weight 0
    losses = -xp.log_sigmoid(margins - data.scalars["margin"][0::2]) * real
    contributions = {"bradley_terry": Contribution(xp.sum(losses), per="groups")}
    if centre:
        contributions["center"] = Contribution(xp.sum(xp.square(chosen + rejected) * real), per="groups", weight=centre)
    right = xp.astype_like(margins > 0, margins) * real
    pairs = xp.sum(real)
    return LossResult(
        contributions,
        {
            "rewards/accuracies": Metric(xp.sum(right), pairs),
            "rewards/margins": Metric(xp.sum(margins * real), pairs),
            "rewards/chosen": Metric(xp.sum(chosen * real), pairs),
            "rewards/rejected": Metric(xp.sum(rejected * real), pairs),
        },
    )


def build_score_mse() -> LossFn:
    """The loss has no options."""
    return score_mse


def score_mse(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Computes the squared error between scores and labels.

    Args:
        outputs: `scores` (S,).
        data: scalars `label` (S,).

    Returns:
        One contribution, `score_mse`, per text.
    """
    scores, counts = outputs["scores"], xp.astype_like(xp.sum(data.mask, axis=1) > 0, outputs["scores"])
    away = xp.square(scores - data.scalars["label"]) * counts
    texts = xp.sum(counts)
    return LossResult(
        {"score_mse": Contribution(xp.sum(away), per="sequences")},
        {"rewards/mean": Metric(xp.sum(scores * counts), texts)},
    )
