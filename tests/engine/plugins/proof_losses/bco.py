"""BCO: binary classifier optimisation (Jung et al., 2024, arXiv:2404.04656).

With r = beta * (log pi(y|x) - log pi_ref(y|x)) and delta the middle between the mean reward of good and of bad answers,

    L = -log sigmoid(r - delta) for a good answer (label 1), -log sigmoid(delta - r) for a bad one (label 0)

delta is a moving mean over steps. Unlike the paper's, the gradient flows through this step's share of it, so that the
loss is a true function of the whole step: what a proof of `together: step` needs.
"""

from __future__ import annotations

from functools import partial

from finetooth_hooks import Context, Contribution, LossData, LossFn, LossResult, LossState, Metric, Options, Outputs
from finetooth_hooks import arrays as xp
from pydantic import Field


class BcoOptions(Options):
    """Options of BCO."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference model."""
    decay: float = Field(default=0.9, ge=0, lt=1)
    """How much of the moving mean is kept from step to step."""


def bco(outputs: Outputs, data: LossData, state: LossState, *, beta: float, decay: float) -> LossResult:
    """Needs the scalar `label` of each sequence."""
    rewards = beta * xp.sum(outputs["logprobs"] - outputs["logprobs@reference"], axis=1)
    good = data.scalars["label"] > 0.5
    middle = 0.5 * (_mean(rewards, good) + _mean(rewards, xp.logical_not(good)))
    delta = decay * state["delta"] + (1.0 - decay) * middle if "delta" in state else middle
    counts = xp.any(data.mask, axis=1)
    signed = xp.where(good, rewards - delta, delta - rewards)
    losses = xp.where(counts, -xp.log_sigmoid(signed), 0.0)
    return LossResult(
        {"bco": Contribution(xp.sum(losses), per="sequences")},
        {"delta": Metric(delta)},
        {"delta": xp.item(delta)},
    )


def _mean(values: xp.Array, chosen: xp.Array) -> xp.Array:
    """Mean over the chosen ones, 0 if there are none."""
    picked = xp.where(chosen, values, 0.0)
    return xp.sum(picked) / xp.maximum(xp.sum(xp.where(chosen, 1.0, 0.0)), 1.0)


def build(options: BcoOptions, context: Context) -> LossFn:
    """The loss with its options bound."""
    return partial(bco, beta=options.beta, decay=options.decay)
