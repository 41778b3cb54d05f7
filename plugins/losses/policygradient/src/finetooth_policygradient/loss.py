"""Policy-gradient losses on sampled tokens.

With p the token's log-probability under the policy, q that under the sampler (field `old_logprobs`), A its advantage
(field `advantages`), r = exp(p - q) and w its weight (field `weights`, 1 by default), each loss is a sum over unmasked
targets, divided by the sum of the weights of the step:

    importance_sampling   -w r A
    ppo                   -w min(r A, clip(r, low, high) A)             Schulman et al., 2017, arXiv:1707.06347, eq. 7
    cispo                 -w stop(clip(r, low, high)) p A               MiniMax, 2025, arXiv:2506.13585, eq. 4
    dro                   -w (p A - beta / 2 (p - q)^2)                 Richemond et al., 2024, arXiv:2405.19107, eq. 7

Bounds apply to the ratio itself, 0.8 to 1.2, not to its distance from 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from finetooth_hooks import (
    Contribution,
    DataError,
    LossData,
    LossFn,
    LossResult,
    LossState,
    NoOptions,
    Options,
    Outputs,
)
from finetooth_hooks import arrays as xp
from finetooth_hooks.arrays import Array
from finetooth_hooks.context import Context
from pydantic import Field, model_validator

PerToken = Callable[[Array, Array, Array], Array]
"""Computes the negative loss of each token from p, q and A."""


class _Clipped(Options):
    @model_validator(mode="after")
    def _in_order(self) -> _Clipped:
        if self.clip_low_threshold > self.clip_high_threshold:  # type: ignore[attr-defined]
            raise ValueError("clip_low_threshold is above clip_high_threshold")
        return self


class PpoOptions(_Clipped):
    """Options of `ppo`."""

    clip_low_threshold: float = Field(default=0.8, ge=0)
    """Smallest ratio with a gradient if the advantage is negative."""
    clip_high_threshold: float = Field(default=1.2, ge=0)
    """Largest ratio with a gradient if the advantage is positive."""


class CispoOptions(_Clipped):
    """Options of `cispo`."""

    clip_low_threshold: float = Field(default=0.0, ge=0)
    """A smaller ratio counts as this."""
    clip_high_threshold: float = Field(default=4.0, ge=0)
    """A larger ratio counts as this."""


class DroOptions(Options):
    """Options of `dro`."""

    beta: float = Field(default=0.05, ge=0)
    """How strongly the policy is kept close to the sampler's log-probabilities."""


def build_importance_sampling(options: NoOptions, context: Context) -> LossFn:
    """Builder of `importance_sampling`."""
    return partial(policy_gradient, per_token=_importance_sampling)


def build_ppo(options: PpoOptions, context: Context) -> LossFn:
    """Builder of `ppo`."""
    bounds = {"low": options.clip_low_threshold, "high": options.clip_high_threshold}
    return partial(policy_gradient, per_token=partial(_ppo, **bounds))


def build_cispo(options: CispoOptions, context: Context) -> LossFn:
    """Builder of `cispo`."""
    bounds = {"low": options.clip_low_threshold, "high": options.clip_high_threshold}
    return partial(policy_gradient, per_token=partial(_cispo, **bounds))


def build_dro(options: DroOptions, context: Context) -> LossFn:
    """Builder of `dro`."""
    return partial(policy_gradient, per_token=partial(_dro, beta=options.beta))


def policy_gradient(outputs: Outputs, data: LossData, state: LossState, *, per_token: PerToken) -> LossResult:
    """The weighted sum of a loss over tokens.

    Args:
        outputs: `logprobs`, (S, T), or (S, T, K) with K targets per position.
        data: fields `old_logprobs` and `advantages`, each (S, T), or (S, T, K) for K targets.

    Returns:
        One contribution, `policy`, whose normalizer is the sum of the weights.

    Raises:
        DataError: a field is missing.
    """
    for name in ("old_logprobs", "advantages"):
        if name not in data.fields:
            raise DataError("data", f"no field {name!r}", action=f"give every datum the field {name}")
    p, mask = outputs["logprobs"], data.mask
    q, advantages, weights = (
        values[..., None] if values.ndim < p.ndim else values
        for values in (data.fields["old_logprobs"], data.fields["advantages"], data.fields["weights"])
    )
    mask = mask[..., None] if mask.ndim < p.ndim else mask
    # masked before any computation: masked values are arbitrary, and 0 * inf is NaN
    p, q, advantages = xp.where(mask, p, 0.0), xp.where(mask, q, 0.0), xp.where(mask, advantages, 0.0)
    total = -xp.sum(weights * xp.where(mask, per_token(p, q, advantages), 0.0))
    return LossResult({"policy": Contribution(total, per="weights")})


def _importance_sampling(p: Array, q: Array, advantages: Array) -> Array:
    return xp.exp(p - q) * advantages


def _ppo(p: Array, q: Array, advantages: Array, *, low: float, high: float) -> Array:
    ratio = xp.exp(p - q)
    return xp.minimum(ratio * advantages, xp.clip(ratio, low, high) * advantages)


def _cispo(p: Array, q: Array, advantages: Array, *, low: float, high: float) -> Array:
    return xp.stop_gradient(xp.clip(xp.exp(p - q), low, high)) * p * advantages


def _dro(p: Array, q: Array, advantages: Array, *, beta: float) -> Array:
    return p * advantages - beta / 2 * xp.square(p - q)
