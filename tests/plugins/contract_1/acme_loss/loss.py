"""The focal loss (Lin et al., 2017, arXiv:1708.02002, eq. 4): - (1 - p)^gamma log p, for each target that counts."""

from __future__ import annotations

from functools import partial

from finetooth_hooks import Context, Contribution, LossData, LossFn, LossResult, LossState, Options, Outputs
from finetooth_hooks import arrays as xp


class LossOptions(Options):
    """Options of `acme_loss`."""

    gamma: float = 2.0
    """How little a target counts that the model already gives a high probability; 0 is cross entropy."""


def build(options: LossOptions, context: Context) -> LossFn:
    """Called once a run, with the options of the recipe."""
    return partial(focal, gamma=options.gamma)


def focal(outputs: Outputs, data: LossData, state: LossState, *, gamma: float) -> LossResult:
    """Sum over the targets that count; the engine divides it by the sum of their weights over the whole step.

    Args:
        outputs: `logprobs`, (S, T).
        data: the mask, and the field `weights`, (S, T).
    """
    logprobs = xp.where(data.mask, outputs["logprobs"], -1.0)  # a masked one may be anything
    each = -((1.0 - xp.exp(logprobs)) ** gamma) * logprobs
    total = xp.sum(xp.where(data.mask, data.fields["weights"] * each, 0.0))
    return LossResult({"focal": Contribution(total, per="weights")})
