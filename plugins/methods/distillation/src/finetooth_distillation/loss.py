"""`distillation`: the divergence of the policy's distribution p over the next token from a teacher's q.

    forward    KL(q || p) = sum q (log q - log p)        Hinton et al., 2015, arXiv:1503.02531: p covers all that q says
    reverse    KL(p || q) = sum p (log p - log q)        Gu et al., 2023, arXiv:2306.08543: p keeps to what q says most
    js         b KL(q || m) + (1 - b) KL(p || m), m = b q + (1 - b) p      Agarwal et al., 2023, arXiv:2306.13649, eq. 1

Sums are over the whole vocabulary, or over the tokens in the data (targets (N, 1 + K): the row's own token, then K of
the teacher's; field `teacher_logprobs` (N, 1 + K) for both) and one more for all the others. That can only reduce the
divergence, and for equal distributions it stays 0.

The component `distillation` is the mean over tokens, times the square of `scale`: the temperature of both
distributions, so that gradients keep their size (Hinton et al., section 2), or 1 (Agarwal et al.). With `cross_entropy`
the row's own token trains too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

from finetooth_hooks import (
    Contribution,
    DataError,
    LossData,
    LossFn,
    LossResult,
    LossSpec,
    LossState,
    Metric,
    Options,
    Outputs,
)
from finetooth_hooks import arrays as xp
from finetooth_hooks.arrays import Array
from finetooth_hooks.context import Context
from pydantic import Field

Divergence = Literal["forward", "reverse", "js"]
LEAST = 1e-6
"""Smallest probability of all other tokens together, so that its logarithm is finite."""


class DistillationOptions(Options):
    """Options of `distillation`."""

    divergence: Divergence = "forward"
    """Divergence between the two distributions."""
    js_beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share of the mixture, for `js`."""
    cross_entropy: float = Field(default=0.0, ge=0)
    """Weight of the cross entropy of the rows' own tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides logits; log-probabilities already have their temperature."""
    scale: float = Field(default=1.0, gt=0)
    """The loss is multiplied by the square of this: the temperature, or 1."""


def build(options: DistillationOptions) -> LossFn:
    """Builder of `distillation`."""
    return partial(distillation, options=options)


def loss_of(context: Context, top_k: int, **given: Any) -> LossSpec:
    """The loss `distillation` of a method.

    Args:
        top_k: number of tokens with the teacher's probability in the data; 0: the whole vocabulary, of both models.
        given: its options.
    """
    spec = context.loss({"name": "distillation", **given}, setting="method")
    if top_k:
        return replace(spec, temperature=given.get("temperature", 1.0))
    return replace(spec, needs=frozenset({"logits", "logits@teacher"}))


def distillation(outputs: Outputs, data: LossData, state: LossState, *, options: DistillationOptions) -> LossResult:
    """Computes the divergence of the model from its teacher for each token.

    Args:
        outputs: `logprobs` (S, T, 1 + K); or `logits` and `logits@teacher` (S, T, V).
        data: field `weights`, and, if sums are over some tokens, `teacher_logprobs` (S, T, 1 + K).

    Raises:
        DataError: the teacher's field is missing.
    """
    mask, weights = data.mask, data.fields["weights"]
    if "logits@teacher" in outputs:
        p, q = (_log_softmax(outputs[name], mask, options.temperature) for name in ("logits", "logits@teacher"))
        token = xp.take_along_axis(p, data.targets[..., None], axis=-1)[..., 0] if options.cross_entropy else None
    else:
        if "teacher_logprobs" not in data.fields:
            raise DataError("data", "no field 'teacher_logprobs'", action="give every datum the field teacher_logprobs")
        policy, teacher = outputs["logprobs"], data.fields["teacher_logprobs"]
        if policy.ndim == mask.ndim:  # one token per position: the rest is all others
            policy, teacher = policy[..., None], teacher[..., None]
            token, p, q = policy[..., 0], _with_others(policy, mask), _with_others(teacher, mask)
        else:
            token, p, q = policy[..., 0], _with_others(policy[..., 1:], mask), _with_others(teacher[..., 1:], mask)
    apart = xp.where(mask, _divergence(p, xp.stop_gradient(q), options), 0.0)
    parts = {"distillation": Contribution(xp.sum(weights * apart), per="weights", weight=options.scale**2)}
    if options.cross_entropy and token is not None:
        likelihood = xp.sum(weights * xp.where(mask, token, 0.0))
        parts["cross_entropy"] = Contribution(-likelihood, per="weights", weight=options.cross_entropy)
    counts = xp.astype_like(mask, apart)
    return LossResult(parts, {"divergence": Metric(xp.sum(xp.stop_gradient(apart)), xp.sum(counts))})


def _log_softmax(logits: Array, mask: Array, temperature: float) -> Array:
    z = xp.where(mask[..., None], logits, 0.0) / temperature
    return z - xp.logsumexp(z, axis=-1, keepdims=True)


def _with_others(logprobs: Array, mask: Array) -> Array:
    """(S, T, K + 1) from (S, T, K): appends the logarithm of the remaining probability; finite even if the mask is
    false."""
    some = xp.where(mask[..., None], logprobs, -30.0)
    rest = xp.clip(1.0 - xp.sum(xp.exp(some), axis=-1, keepdims=True), LEAST, 1.0)
    return xp.concat([some, xp.log(rest)], axis=-1)


def _divergence(p: Array, q: Array, options: DistillationOptions) -> Array:
    """The divergence (S, T) of two arrays of log-probabilities (S, T, M)."""
    if options.divergence == "forward":
        return xp.sum(xp.exp(q) * (q - p), axis=-1)
    if options.divergence == "reverse":
        return xp.sum(xp.exp(p) * (p - q), axis=-1)
    b = options.js_beta
    m = xp.log(b * xp.exp(q) + (1.0 - b) * xp.exp(p))
    return b * xp.sum(xp.exp(q) * (q - m), axis=-1) + (1.0 - b) * xp.sum(xp.exp(p) * (p - m), axis=-1)
