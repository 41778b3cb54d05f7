"""Cross entropy over the unmasked targets: loss = - sum(w * log p(target)) / sum(w).

The sums run over every target of the optimizer step whose mask is true; `w` is the datum's field `weights`, else 1. The
engine divides by the sum of the weights of the whole step, so accumulation never changes the loss.
"""

from __future__ import annotations

from finetooth_hooks import Contribution, LossData, LossFn, LossResult, LossState, Outputs
from finetooth_hooks import arrays as xp


def build() -> LossFn:
    """Builder of the loss, which has no options."""
    return cross_entropy


def cross_entropy(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Weighted negative log-likelihood, in nats.

    Args:
        outputs: `logprobs`, (S, T), or (S, T, K) with K targets per position.
        data: `fields["weights"]`, (S, T), or (S, T, K) for a distribution over K targets.

    Returns:
        One contribution, `cross_entropy`: the sum of -w log p; its normalizer is the sum of the weights.
    """
    logprobs, weights, mask = outputs["logprobs"], data.fields["weights"], data.mask
    if logprobs.ndim > weights.ndim:
        weights = weights[..., None]
    if logprobs.ndim > mask.ndim:
        mask = mask[..., None]
    # masked before the product: masked values are arbitrary, and 0 * -inf is NaN
    total = -xp.sum(weights * xp.where(mask, logprobs, 0.0))
    return LossResult({"cross_entropy": Contribution(total, per="weights")})
