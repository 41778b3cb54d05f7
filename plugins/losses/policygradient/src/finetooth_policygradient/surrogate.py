"""`surrogate`: the loss of all methods that learn from rollouts.

A method gives each token a weight (field `token_weights`) that includes all normalisation, and an advantage (field
`advantages`). With p the policy's log-probability of the token, q that of the weights that sampled it (field
`old_logprobs`; without it p itself as a constant, so the ratio is 1 and only its gradient matters), r = exp(p - q), or
exp of the sequence's mean of p - q (`importance_sampling_level: sequence`, GSPO: Zheng et al., 2025, arXiv:2507.18071,
eq. 7), the component `policy` is the weighted sum of

    clip     -min(min(r, delta) A, clip(r, 1 - epsilon, 1 + epsilon_high) A)
                                           Schulman et al., 2017, arXiv:1707.06347, eq. 7; the bound `delta` for
                                           negative advantages: Prime Intellect, 2025, arXiv:2505.07291
    cispo    -stop(min(r, 1 + epsilon_high)) A p         MiniMax, 2025, arXiv:2506.13585, eq. 4
    sapo     -(4 / tau) sigmoid(tau (r - 1)) A, tau by the sign of A                    arXiv:2511.20347
    vespo    -stop(exp(l) W^k exp(-l W)) A p, k and l (lambda) by the sign of A, W the product of the sequence's r and
             of the weights w below, which count nowhere else            arXiv:2602.10693

With `beta` the component `kl` is the same weighted sum of an estimate of the KL to the reference (Schulman, 2020,
"Approximating KL divergence"), with d = log of reference / policy: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1. With
`use_bias_correction_kl` it is multiplied by the token's own exp(p - q), at every `importance_sampling_level`, and by w
below: then its expected gradient over the samples is the gradient of the KL itself (DeepSeek-AI, 2025,
arXiv:2512.02556, section 3.1, for k3). The factor of k2 is held constant, since the slope of k2 already is that
gradient. Without the factor the slope of k1 does not depend on the reference, so this combination is refused.

With `entropy_coef` the component `entropy` is minus the mean entropy over tokens; with the field `entropy_weights`,
from a method that controls the bonus, minus the sum over tokens of that weight times the entropy. The field
`policy_mask` is 1 for tokens that `policy` trains, and 0 for others, which still count in `kl`.

For tokens that other weights sampled, with log-probabilities b in the field `behaviour_logprobs`, the part in `policy`
is multiplied by the constant w = exp(q - b), by the product of a sequence's w, or by its geometric mean; `truncate`
clips it between a floor and a cap, `mask` replaces it by 0 outside (Yao et al., 2025, "Your efficient RL framework
secretly brings you off-policy RL training"; sequences: Liu et al., 2025, "When speed kills stability"). With
`off_policy_mask_threshold` a sequence with a negative advantage and a mean of b - p (without b: q - p) above it is left
out (OPSM: DeepSeek-AI, 2025, arXiv:2512.02556, section 3.1).

If the field `kept` has the set of tokens from which each was sampled, log-probabilities are over that set.
"""

from __future__ import annotations

from functools import partial
from math import log
from typing import Literal

from finetooth_hooks import Contribution, DataError, LossData, LossFn, LossResult, LossState, Metric, Outputs
from finetooth_hooks import arrays as xp
from finetooth_hooks.arrays import Array
from finetooth_rollouts.kept import renormalised
from finetooth_rollouts.policy_options import Kl, PolicyOptions
from pydantic import model_validator

LEAST, MOST = 1e-8, 20.0
"""Of `vespo`: the smallest weight of a sequence, and the largest logarithm, as in the authors' code."""


class SurrogateOptions(PolicyOptions):
    """Options of `surrogate`."""

    objective: Literal["clip", "cispo", "sapo", "vespo"] = "clip"
    """How ratio and advantage are combined."""

    @model_validator(mode="after")
    def _in_order(self) -> SurrogateOptions:
        if self.delta is not None and self.delta <= 1 + self.high:
            raise ValueError(f"delta is {self.delta}, not above the clip at {1 + self.high}: raise it")
        correction = self.importance_correction, self.importance_correction_level
        if self.objective == "vespo" and correction[0] != "none" and correction[1] != "token":
            raise ValueError("vespo weighs whole sequences itself: leave importance_correction_level out")
        return self

    @property
    def high(self) -> float:
        """`epsilon_high`, or its default."""
        if self.epsilon_high is not None:
            return self.epsilon_high
        return 4.0 if self.objective == "cispo" else self.epsilon


def build(options: SurrogateOptions) -> LossFn:
    """Builder of `surrogate`."""
    return partial(surrogate, options=options)


def surrogate(outputs: Outputs, data: LossData, state: LossState, *, options: SurrogateOptions) -> LossResult:
    """Computes the clipped policy-gradient objective.

    Args:
        outputs: `logprobs` (S, T) or (S, T, K), `entropy` (S, T); with `beta` also `logprobs@reference`.
        data: fields `advantages` and `token_weights` (S, T), perhaps `behaviour_logprobs`,
            `policy_mask` and `entropy_weights` (S, T), `old_logprobs`, (S, T) or (S, T, K), and `kept`.

    Raises:
        DataError: a field is missing.
    """
    for name in ("advantages", "token_weights"):
        if name not in data.fields:
            raise DataError("data", f"no field {name!r}", action=f"give every datum the field {name}")
    mask, old = data.mask, data.fields.get("old_logprobs")
    kept = data.fields["kept"] if outputs["logprobs"].ndim > mask.ndim else None
    weights = xp.where(mask, data.fields["token_weights"], 0.0)
    advantages = xp.where(mask, data.fields["advantages"], 0.0)
    p = xp.where(mask, renormalised(outputs["logprobs"], kept), 0.0)
    q = xp.stop_gradient(p) if old is None else xp.where(mask, renormalised(old, kept), 0.0)
    counts = xp.astype_like(mask, p)
    log_ratio = p - q
    if options.importance_sampling_level == "sequence":
        tokens = xp.maximum(xp.sum(counts, axis=1, keepdims=True), 1.0)
        log_ratio = xp.sum(log_ratio, axis=1, keepdims=True) / tokens + xp.zeros_like(p)
    ratio = xp.exp(log_ratio)
    behaviour = data.fields.get("behaviour_logprobs")
    drawn = None if behaviour is None else xp.where(mask, behaviour, 0.0)
    corrected, trained = _corrected(q, drawn, counts, options), weights
    factor = ratio
    if options.objective == "vespo":
        factor = _gamma_weights(p - q, corrected, advantages, counts, options)
    else:
        trained = trained * corrected
    trained = trained * _on_policy(p, q, drawn, advantages, counts, options)
    if "policy_mask" in data.fields:
        trained = trained * data.fields["policy_mask"]
    total, tokens = -xp.sum(trained * _objective(factor, p, advantages, options)), xp.sum(counts)
    parts = {"policy": Contribution(total, per="none")}
    seen = xp.stop_gradient(ratio)
    metrics = {
        "entropy": Metric(xp.sum(xp.where(mask, xp.stop_gradient(outputs["entropy"]), 0.0)), tokens),
        "ratio/min": Metric(xp.min(xp.where(mask, seen, 1.0)), reduce="min"),
        "ratio/max": Metric(xp.max(xp.where(mask, seen, 1.0)), reduce="max"),
        **_clipped(seen, advantages, counts, options),
    }
    if options.beta:
        reference = xp.where(mask, renormalised(outputs["logprobs@reference"], kept), 0.0)
        kl = kl_estimate(reference - p, options.kl)
        if options.use_bias_correction_kl:
            of_token = xp.exp(p - q)
            kl = kl * corrected * (xp.stop_gradient(of_token) if options.kl == "k2" else of_token)
        parts["kl"] = Contribution(xp.sum(weights * kl), per="none", weight=options.beta)
        metrics["kl"] = Metric(xp.sum(xp.stop_gradient(kl) * counts), tokens)
    bonus = data.fields.get("entropy_weights")
    if bonus is not None:
        entropy = xp.sum(xp.where(mask, outputs["entropy"] * bonus, 0.0))
        parts["entropy"] = Contribution(-entropy, per="none")
    elif options.entropy_coef:
        entropy = xp.sum(xp.where(mask, outputs["entropy"], 0.0))
        parts["entropy"] = Contribution(-entropy, per="tokens", weight=options.entropy_coef)
    return LossResult(parts, metrics)


def _corrected(q: Array, drawn: Array | None, counts: Array, options: SurrogateOptions) -> Array:
    """The importance weight of each token; 1 without a correction."""
    if drawn is None or options.importance_correction == "none":
        return xp.ones_like(counts)
    log_w = xp.stop_gradient(q) - drawn
    if options.importance_correction_level != "token":
        log_w = xp.sum(log_w * counts, axis=1, keepdims=True) + xp.zeros_like(counts)
    if options.importance_correction_level == "geometric":
        log_w = log_w / xp.maximum(xp.sum(counts, axis=1, keepdims=True), 1.0)
    w, low, high = (
        xp.exp(xp.clip(log_w, -80.0, 80.0)),
        options.importance_correction_floor,
        options.importance_correction_cap,
    )
    return (
        xp.clip(w, low, high)
        if options.importance_correction == "truncate"
        else xp.where((w >= low) & (w <= high), w, 0.0)
    )


def _gamma_weights(log_ratio: Array, w: Array, advantages: Array, counts: Array, options: SurrogateOptions) -> Array:
    """The constant factors of whole sequences in `vespo`, (S, T): 1 if the policy itself sampled them.

    Args:
        log_ratio: (S, T) of each token.
        w: (S, T) the importance weights of the tokens.
    """
    each = xp.clip(xp.stop_gradient(log_ratio), -MOST, MOST) + xp.clip(xp.log(xp.maximum(w, LEAST)), -MOST, MOST)
    log_w = xp.clip(xp.sum(each * counts, axis=1, keepdims=True), log(LEAST), MOST) + xp.zeros_like(counts)
    positive = advantages >= 0
    k = xp.where(positive, options.vespo_k_pos + xp.zeros_like(counts), options.vespo_k_neg + xp.zeros_like(counts))
    rate = xp.where(
        positive, options.vespo_lambda_pos + xp.zeros_like(counts), options.vespo_lambda_neg + xp.zeros_like(counts)
    )
    return xp.exp(xp.maximum(rate + k * log_w - rate * xp.exp(log_w), -80.0))


def _on_policy(
    p: Array, q: Array, drawn: Array | None, advantages: Array, counts: Array, options: SurrogateOptions
) -> Array:
    """0 for the tokens of sequences that are left out."""
    if options.off_policy_mask_threshold is None:
        return xp.ones_like(counts)
    apart = xp.stop_gradient(q if drawn is None else drawn) - xp.stop_gradient(p)
    mean = xp.sum(apart * counts, axis=1, keepdims=True) / xp.maximum(xp.sum(counts, axis=1, keepdims=True), 1.0)
    out = (advantages < 0) & (mean + xp.zeros_like(counts) > options.off_policy_mask_threshold)
    return 1.0 - xp.astype_like(out, counts)


def kl_estimate(d: Array, kind: Kl) -> Array:
    """The estimate from d, the logarithm of reference / policy."""
    if kind == "k1":
        return -d
    return xp.square(d) / 2 if kind == "k2" else xp.exp(d) - d - 1.0


def _objective(ratio: Array, p: Array, advantages: Array, options: SurrogateOptions) -> Array:
    """The objective to maximise, for each token."""
    if options.objective == "cispo":
        return xp.stop_gradient(xp.minimum(ratio, 1 + options.high)) * advantages * p
    if options.objective == "vespo":
        return ratio * advantages * p
    if options.objective == "sapo":
        positive, negative = options.sapo_temperature_pos, options.sapo_temperature_neg
        tau = xp.where(advantages > 0, positive + xp.zeros_like(p), negative + xp.zeros_like(p))
        return xp.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau * advantages
    clipped = xp.clip(ratio, 1 - options.epsilon, 1 + options.high)
    free = ratio if options.delta is None else xp.minimum(ratio, options.delta)
    return xp.minimum(free * advantages, clipped * advantages)


def _clipped(ratio: Array, advantages: Array, counts: Array, options: SurrogateOptions) -> dict[str, Metric]:
    """Shares of tokens whose gradient is clipped to 0."""
    if options.objective in ("sapo", "vespo"):
        return {}
    tokens, high = xp.sum(counts), xp.astype_like((ratio > 1 + options.high) & (advantages > 0), counts) * counts
    if options.objective == "cispo":
        return {"clip_ratio/high_mean": Metric(xp.sum(high), tokens)}
    low = xp.astype_like((ratio < 1 - options.epsilon) & (advantages < 0), counts) * counts
    return {
        "clip_ratio/low_mean": Metric(xp.sum(low), tokens),
        "clip_ratio/high_mean": Metric(xp.sum(high), tokens),
        "clip_ratio/region_mean": Metric(xp.sum(low + high), tokens),
    }
