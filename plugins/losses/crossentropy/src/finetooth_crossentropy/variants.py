"""Relatives of cross entropy for supervised fine-tuning: focal, DFT, smoothed.

With p the probability of a target, w its weight, and every sum over the unmasked targets of the optimizer step:

    focal      - sum(w * (1 - p)^gamma * log p) / sum(w)            Lin et al. 2017, arXiv:1708.02002, eq. 4
    dft        - sum(w * sg(p) * log p) / sum(w)                    Wu et al. 2025, arXiv:2508.05629, eq. 9
    smoothed   - sum(w * ((1 - e) * log p + e * mean_v log p_v)) / sum(w)
                                                                    Szegedy et al. 2016, arXiv:1512.00567, sec. 7
               + z * sum(w * log(sum_v exp(logit_v))^2) / sum(w)    Chowdhery et al. 2022, arXiv:2204.02311, sec. 5

where sg stops the gradient: its argument is a constant.
"""

from __future__ import annotations

from functools import partial

from finetooth_hooks import Contribution, LossData, LossFn, LossResult, LossState, Options, Outputs
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Array
from pydantic import Field

LEAST = 1e-12
"""Smallest value of 1 - p in `focal`."""


class FocalOptions(Options):
    """Options of `focal`."""

    gamma: float = Field(default=2.0, ge=0)
    """How much less weight targets get that the model already predicts well; 0 is cross entropy."""


class SmoothedOptions(Options):
    """Options of `smoothed_cross_entropy`."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of each target that is spread evenly over the whole vocabulary."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared logarithm of the softmax's sum, which keeps logits from drifting; 1e-4 is usual."""


def build_focal(options: FocalOptions) -> LossFn:
    """Builder of the loss `focal`."""
    return partial(focal, gamma=options.gamma)


def build_dft() -> LossFn:
    """Builder of the loss `dft`."""
    return dft


def build_smoothed(options: SmoothedOptions) -> LossFn:
    """Builder of the loss `smoothed_cross_entropy`."""
    return partial(smoothed, label_smoothing=options.label_smoothing, z_loss=options.z_loss)


def focal(outputs: Outputs, data: LossData, state: LossState, *, gamma: float) -> LossResult:
    """Cross entropy with less weight on targets that the model already predicts well.

    Args:
        outputs: `logprobs`, (S, T) or (S, T, K).
    """
    logprobs, weights = _counted(outputs["logprobs"], data)
    # 1 - p, exact for p near 1; for p = 1 and gamma < 1 the slope of the power would be infinite
    missing = xp.maximum(-xp.expm1(logprobs), LEAST)
    factor = missing**gamma if gamma else xp.ones_like(missing)
    return LossResult({"focal": Contribution(-xp.sum(weights * factor * logprobs), per="weights")})


def dft(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Dynamic fine-tuning: each target's weight is its probability, so that improbable targets have no large gradient
    of 1/p.

    Args:
        outputs: `logprobs`, (S, T) or (S, T, K).
    """
    logprobs, weights = _counted(outputs["logprobs"], data)
    believed = xp.stop_gradient(xp.exp(logprobs))
    return LossResult({"dft": Contribution(-xp.sum(weights * believed * logprobs), per="weights")})


def smoothed(
    outputs: Outputs, data: LossData, state: LossState, *, label_smoothing: float, z_loss: float
) -> LossResult:
    """Cross entropy with label smoothing, and a penalty that keeps logits near zero.

    Args:
        outputs: `logprobs`, (S, T) or (S, T, K), and `logits`, (S, T, V).
    """
    logprobs, weights = _counted(outputs["logprobs"], data)
    logits = xp.where(data.mask[..., None], outputs["logits"], 0.0)  # masked values are arbitrary
    normalizer = xp.logsumexp(logits, axis=-1)
    even = xp.mean(logits, axis=-1) - normalizer  # the mean of log p over the vocabulary
    if logprobs.ndim > even.ndim:
        even = even[..., None]
    total = -xp.sum(weights * ((1 - label_smoothing) * logprobs + label_smoothing * even))
    parts = {"cross_entropy": Contribution(total, per="weights")}
    if z_loss:
        once = weights if weights.ndim == normalizer.ndim else xp.sum(weights, axis=-1)
        parts["z_loss"] = Contribution(xp.sum(once * xp.square(normalizer)), per="weights", weight=z_loss)
    return LossResult(parts)


def _counted(logprobs: Array, data: LossData) -> tuple[Array, Array]:
    """Log-probabilities and weights, both 0 if masked, with the same number of axes."""
    weights, mask = data.fields["weights"], data.mask
    if logprobs.ndim > weights.ndim:
        weights = weights[..., None] + xp.zeros_like(logprobs)
    if logprobs.ndim > mask.ndim:
        mask = mask[..., None]
    return xp.where(mask, logprobs, 0.0), xp.where(mask, weights, 0.0)
