"""Losses the kit tries engines with, each with its hand-derived gradient: a formula judges the engine.

With l_s the sum of the log-probabilities of sequence s over its mask, and w the weights:

    weighted_nll    -sum w * logprob                    per weights
    pair_margin     -sum log_sigmoid(l_first - l_second)  per groups, `together: group`
    centred         sum (l_s - mean l)^2                per sequences, `together: step`, with a running mean as state
    score_pairs     -sum log_sigmoid(r_first - r_second)  per groups, r the scores of a scalar head
    value_distance  sum (v_t - 1)^2 over the mask       per tokens, v the values of a scalar head
    behind_likeliest  sum over the mask of max_v logprob_v - logprob of the token that `weights` marks, no normalizer
    mixed           a component for every normalizer, a metric for every way to combine them
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossData, LossResult, LossSpec, LossState, Metric, Outputs
from numpy.typing import NDArray

Grad = NDArray[np.float64]

LEAST = -1e9
"""Below every log-probability: the largest of none."""


def weighted_nll(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Cross entropy: minus the weighted sum of log-probabilities; -w is its gradient."""
    total = -xp.sum(outputs["logprobs"] * data.fields["weights"])
    return LossResult(
        {"nll": Contribution(total, per="weights")},
        {"targets": Metric(xp.sum(xp.astype_like(data.mask, outputs["logprobs"])), reduce="sum")},
        state,
    )


def plain_sum(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Minus the sum of log-probabilities, divided by nothing."""
    total = -xp.sum(xp.where(data.mask, outputs["logprobs"], 0.0))
    return LossResult({"sum": Contribution(total, per="none")}, state=state)


def sums_of(outputs: Outputs, data: LossData, name: str = "logprobs") -> xp.Array:
    """(S,) sum over the mask of each sequence."""
    return xp.sum(xp.where(data.mask, outputs[name], 0.0), axis=1)


def pair_margin(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Prefer the first of each pair to the second."""
    sums = sums_of(outputs, data)
    margins = sums[0::2] - sums[1::2]
    return LossResult({"margin": Contribution(-xp.sum(xp.log_sigmoid(margins)), per="groups")}, state=state)


def against_reference(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Squared distance to the reference."""
    difference = sums_of(outputs, data) - sums_of(outputs, data, "logprobs@reference")
    return LossResult({"distance": Contribution(xp.sum(xp.square(difference - 1.0)), per="sequences")}, state=state)


def centred(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Pull the sequences' sums to their common mean, which only the whole step knows."""
    sums = sums_of(outputs, data)
    mean = xp.mean(sums)
    count = state.get("steps", 0.0) + 1.0
    running = state.get("mean", 0.0) + (xp.item(xp.stop_gradient(mean)) - state.get("mean", 0.0)) / count
    total = xp.sum(xp.square(sums - mean))
    return LossResult(
        {"centred": Contribution(total, per="sequences")},
        {"running": Metric(running)},
        {"steps": count, "mean": running},
    )


def score_pairs(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Prefer the first of each pair, by the scores of a scalar head."""
    margins = outputs["scores"][0::2] - outputs["scores"][1::2]
    return LossResult({"pairs": Contribution(-xp.sum(xp.log_sigmoid(margins)), per="groups")}, state=state)


def value_distance(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Pull the value of every position that counts to 1."""
    away = xp.where(data.mask, outputs["values"] - 1.0, 0.0)
    return LossResult({"distance": Contribution(xp.sum(xp.square(away)), per="tokens")}, state=state)


def centred_scores(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Pull the scores to their common mean, which only the whole step knows."""
    scores = outputs["scores"]
    return LossResult(
        {"centred": Contribution(xp.sum(xp.square(scores - xp.mean(scores) - 1.0)), per="sequences")}, state=state
    )


def behind_likeliest(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """How far the marked token of each position is behind the likeliest one; targets are all ids, (S, T, V)."""
    logprobs, marked = outputs["logprobs"], data.fields["weights"]
    behind = xp.max(logprobs, axis=-1) - xp.sum(xp.where(marked > 0, logprobs, 0.0), axis=-1)
    return LossResult({"behind": Contribution(xp.sum(xp.where(data.mask, behind, 0.0)), per="none")}, state=state)


def mixed(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """A component for every normalizer, and a metric for every way to combine them."""
    logprobs, tokens = outputs["logprobs"], xp.astype_like(data.mask, outputs["logprobs"])
    sums = sums_of(outputs, data)
    groups = xp.segment_sum(sums, data.group, int(xp.item(xp.max(data.group))) + 1)
    contributions = {
        "nll": Contribution(-xp.sum(logprobs * data.fields["weights"]), per="weights"),
        "square": Contribution(xp.sum(xp.square(logprobs) * tokens), per="tokens", weight=0.25),
        "sequences": Contribution(xp.sum(xp.square(sums)), per="sequences", weight=0.5),
        "groups": Contribution(xp.sum(xp.square(groups)), per="groups", weight=-0.125),
        "sum": Contribution(xp.sum(logprobs * tokens), per="none", weight=0.0625),
    }
    metrics = {
        "logprob": Metric(xp.sum(logprobs * tokens), xp.sum(tokens)),
        "targets": Metric(xp.sum(tokens), reduce="sum"),
        "best": Metric(xp.max(xp.where(data.mask, logprobs, LEAST)), reduce="max"),
        "worst": Metric(xp.min(xp.where(data.mask, logprobs, 0.0)), reduce="min"),
    }
    return LossResult(contributions, metrics, state)


def not_finite(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """NaN, for the engine to refuse."""
    total = xp.sum(xp.where(data.mask, outputs["logprobs"], 0.0)) * float("nan")
    return LossResult({"nan": Contribution(total, per="weights")}, state=state)


def smuggled_state(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """A state in a loss that is not `together: step`, for the engine to refuse."""
    result = weighted_nll(outputs, data, state)
    return LossResult(result.contributions, state={"calls": state.get("calls", 0.0) + 1.0})


WEIGHTED_NLL = LossSpec("kit:weighted_nll", weighted_nll)
MIXED = LossSpec("kit:mixed", mixed, together="group")
PLAIN_SUM = LossSpec("kit:plain_sum", plain_sum)
BEHIND_LIKELIEST = LossSpec("kit:behind_likeliest", behind_likeliest)
PAIR_MARGIN = LossSpec("kit:pair_margin", pair_margin, together="group")
CENTRED = LossSpec("kit:centred", centred, together="step")
AGAINST_REFERENCE = LossSpec("kit:against_reference", against_reference, frozenset({"logprobs", "logprobs@reference"}))
SCORE_PAIRS = LossSpec("kit:score_pairs", score_pairs, frozenset({"scores"}), together="group")
VALUE_DISTANCE = LossSpec("kit:value_distance", value_distance, frozenset({"values"}))
CENTRED_SCORES = LossSpec("kit:centred_scores", centred_scores, frozenset({"scores"}), together="step")
NOT_FINITE = LossSpec("kit:not_finite", not_finite)
SMUGGLED_STATE = LossSpec("kit:smuggled_state", smuggled_state)


def pair_margin_gradient(logprobs: list[Grad], masks: list[NDArray[np.bool_]]) -> tuple[float, list[Grad]]:
    """Loss and dL/dlogprob of `pair_margin`, normalised: d(-log_sigmoid(m))/dm = -sigmoid(-m)."""
    sums = np.array([float(np.sum(lp[mask])) for lp, mask in zip(logprobs, masks, strict=True)])
    margins = sums[0::2] - sums[1::2]
    loss = float(np.mean(np.logaddexp(0.0, -margins)))
    slope = -1.0 / (1.0 + np.exp(margins)) / len(margins)
    factors = np.stack([slope, -slope], axis=1).reshape(-1)
    return loss, [factor * mask.astype(np.float64) for factor, mask in zip(factors, masks, strict=True)]


def centred_gradient(logprobs: list[Grad], masks: list[NDArray[np.bool_]]) -> tuple[float, list[Grad]]:
    """Loss and dL/dlogprob of `centred`, normalised: 2 (l_s - mean) / S, since the deviations sum to zero."""
    sums = np.array([float(np.sum(lp[mask])) for lp, mask in zip(logprobs, masks, strict=True)])
    deviations = sums - sums.mean()
    loss = float(np.mean(deviations**2))
    factors = 2.0 * deviations / len(sums)
    return loss, [factor * mask.astype(np.float64) for factor, mask in zip(factors, masks, strict=True)]


def mixed_by_hand(
    logprobs: Sequence[Grad], masks: Sequence[NDArray[np.bool_]], weights: Sequence[Grad], groups: Sequence[str]
) -> tuple[float, dict[str, float], dict[str, float]]:
    """Loss, components and metrics of `mixed` over a whole step: its formulas, in float64.

    Args:
        groups: of each sequence, its key.
    """
    counted = np.concatenate([lp[mask] for lp, mask in zip(logprobs, masks, strict=True)])
    sums = [float(lp[mask].sum()) for lp, mask in zip(logprobs, masks, strict=True)]
    by_group: dict[str, float] = {}
    for key, total in zip(groups, sums, strict=True):
        by_group[key] = by_group.get(key, 0.0) + total
    weighed = [(w * mask, lp) for w, mask, lp in zip(weights, masks, logprobs, strict=True)]
    divided = {
        "nll": (-sum(float((w * lp).sum()) for w, lp in weighed), sum(float(w.sum()) for w, _ in weighed)),
        "square": (float((counted**2).sum()), float(counted.size)),
        "sequences": (sum(total**2 for total in sums), float(sum(bool(mask.any()) for mask in masks))),
        "groups": (sum(total**2 for total in by_group.values()), float(len(by_group))),
        "sum": (float(counted.sum()), 1.0),
    }
    components = {name: total / count if count else 0.0 for name, (total, count) in divided.items()}
    metrics = {
        "targets": float(counted.size),
        "best": float(counted.max(initial=LEAST)),
        "worst": float(counted.min(initial=0.0)),
    }
    if counted.size:
        metrics["logprob"] = float(counted.mean())
    factors = {"nll": 1.0, "square": 0.25, "sequences": 0.5, "groups": -0.125, "sum": 0.0625}
    return sum(factors[name] * value for name, value in components.items()), components, metrics
