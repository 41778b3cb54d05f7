"""Losses on single answers with a label: 1 is desirable, 0 is not."""

from __future__ import annotations

from collections.abc import Callable

from finetooth_hooks import Context, Contribution, LossData, LossFn, LossResult, LossState, Metric, Outputs
from finetooth_hooks import arrays as xp

from finetooth_preflosses import formulas
from finetooth_preflosses.options import KtoOptions
from finetooth_preflosses.sums import Array


def kto(options: KtoOptions, context: Context) -> LossFn:
    """KTO (Ethayarajh et al., 2024, arXiv:2402.01306, eq. 7), lambda_y - v(x, y). Reads the scalar `kl`, the method's
    estimate of the KL to the reference for the step; it has no gradient."""

    def losses(rewards: Array, data: LossData) -> tuple[Array, Array]:
        point = options.beta * data.scalars["kl"]
        return formulas.kto(rewards, point), formulas.kto(-rewards, -point)

    return _loss("kto", options, losses, kl=True)


def apo_zero_unpaired(options: KtoOptions, context: Context) -> LossFn:
    """APO-zero (D'Oosterlinck et al., 2024, arXiv:2408.06266, eq. 7), its two halves for single answers."""
    return _loss("apo_zero_unpaired", options, lambda rewards, data: (1.0 - xp.sigmoid(rewards), xp.sigmoid(rewards)))


Losses = Callable[[Array, LossData], tuple[Array, Array]]
"""Computes two losses of each answer, (S,): as a desirable one, and as an undesirable one."""


def _loss(name: str, options: KtoOptions, losses: Losses, *, kl: bool = False) -> LossFn:
    """The loss as a mean over answers."""

    def loss(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
        own = xp.sum(xp.where(data.mask, outputs["logprobs"], 0.0), axis=1)
        known = xp.sum(xp.where(data.mask, outputs["logprobs@reference"], 0.0), axis=1)
        rewards = options.beta * (own - known)
        good, real = data.scalars["label"] > 0.5, xp.any(data.mask, axis=1)
        desirable, undesirable = losses(rewards, data)
        each = xp.where(good, options.desirable_weight * desirable, options.undesirable_weight * undesirable)
        metrics = {}
        for side, members in (("chosen", good), ("rejected", xp.logical_not(good))):
            here = xp.logical_and(members, real)
            count = xp.sum(xp.where(here, xp.ones_like(own), 0.0))
            for what, values in (("rewards", rewards), ("logps", own)):
                total = xp.stop_gradient(xp.sum(xp.where(here, values, 0.0)))
                metrics[f"{what}/{side}"] = Metric(total, xp.stop_gradient(count))
        if kl:
            metrics["kl"] = Metric(xp.sum(data.scalars["kl"]), float(data.sequences))
        return LossResult({name: Contribution(xp.sum(xp.where(real, each, 0.0)), per="sequences")}, metrics, state)

    return loss
