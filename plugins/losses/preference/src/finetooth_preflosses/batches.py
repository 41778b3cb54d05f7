"""Losses on pairs with a statistic over the whole step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetooth_hooks import Context, Contribution, LossData, LossFn, LossResult, LossState, Metric, Outputs
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Per

from finetooth_preflosses import formulas
from finetooth_preflosses.metrics import pair_metrics
from finetooth_preflosses.options import AotOptions, BcoOptions, PairOptions
from finetooth_preflosses.sums import Array, Pairs, pairs_of

Step = Callable[[Pairs, LossState], tuple[Array, Mapping[str, Any], Mapping[str, Metric]]]
"""Returns the total over the step, the state after it, and further metrics."""


def bco_pair(options: BcoOptions, context: Context) -> LossFn:
    """BCO on pairs. Its shift is the mean of all rewards so far, including this step's, without a gradient."""

    def step(pairs: Pairs, state: LossState) -> tuple[Array, Mapping[str, Any], Mapping[str, Metric]]:
        chosen, rejected = options.beta * pairs.chosen_ratio, options.beta * pairs.rejected_ratio
        shift, after = _running_mean(pairs, chosen, rejected, state) if options.shift else (0.0, {})
        losses = formulas.bco(chosen, shift) + formulas.bco(-rejected, -shift)
        return pairs.sum(losses), after, {"bco/shift": Metric(shift)} if options.shift else {}

    return _loss("bco_pair", options, step, "groups")


def _running_mean(pairs: Pairs, chosen: Array, rejected: Array, state: LossState) -> tuple[float, Mapping[str, Any]]:
    count = 2.0 * xp.item(xp.stop_gradient(pairs.count))
    seen, mean = state.get("count", 0.0), state.get("mean", 0.0)
    if count:
        here = xp.item(xp.stop_gradient(pairs.sum(chosen + rejected))) / count
        mean += (here - mean) * count / (seen + count)
    return mean, {"count": seen + count, "mean": mean}


def kto_pair(options: PairOptions, context: Context) -> LossFn:
    """KTO on pairs (arXiv:2402.01306, section 4.1, as in earlier DPO trainers): the KL for one side is the mean ratio
    of the other side, at least 0, without a gradient. A mean over answers, not pairs."""

    def step(pairs: Pairs, state: LossState) -> tuple[Array, Mapping[str, Any], Mapping[str, Metric]]:
        beta, count = options.beta, xp.maximum(pairs.count, 1.0)
        above = xp.stop_gradient(xp.relu(pairs.sum(pairs.chosen_ratio) / count))
        below = xp.stop_gradient(xp.relu(pairs.sum(pairs.rejected_ratio) / count))
        chosen = formulas.kto(beta * pairs.chosen_ratio, beta * below)
        rejected = formulas.kto(-beta * pairs.rejected_ratio, -beta * above)
        return pairs.sum(chosen + rejected), {}, {"kl": Metric(0.5 * (above + below))}

    return _loss("kto_pair", options, step, "sequences")


def aot(options: AotOptions, context: Context) -> LossFn:
    """AOT (Melnyk et al., 2024, arXiv:2406.05882, algorithm 1, paired): the sorted margins of the policy above the
    sorted margins of the reference, quantile by quantile."""

    def step(pairs: Pairs, state: LossState) -> tuple[Array, Mapping[str, Any], Mapping[str, Metric]]:
        mine = _sorted(pairs, pairs.chosen - pairs.rejected)
        theirs = _sorted(pairs, pairs.chosen_reference - pairs.rejected_reference)
        return _quantiles(pairs, mine - theirs, options), {}, {}

    return _loss("aot", options, step, "groups")


def aot_unpaired(options: AotOptions, context: Context) -> LossFn:
    """AOT, unpaired (the same): the sorted ratios of chosen answers above those of rejected ones."""

    def step(pairs: Pairs, state: LossState) -> tuple[Array, Mapping[str, Any], Mapping[str, Metric]]:
        difference = _sorted(pairs, pairs.chosen_ratio) - _sorted(pairs, pairs.rejected_ratio)
        return _quantiles(pairs, difference, options), {}, {}

    return _loss("aot_unpaired", options, step, "groups")


def _sorted(pairs: Pairs, values: Array) -> Array:
    """Sorted values, with padding pairs at the end."""
    return xp.sort(xp.where(pairs.real, values, FAR))


FAR = 1e30
"""A number above every ratio; both sides have it, so that its differences are 0."""


def _quantiles(pairs: Pairs, difference: Array, options: AotOptions) -> Array:
    losses = formulas.sigmoid(options.beta * difference, options.label_smoothing)
    real = xp.astype_like(xp.arange(int(difference.shape[0]), difference), losses) < pairs.count
    return xp.sum(xp.where(real, losses, 0.0))


def _loss(name: str, options: PairOptions, step: Step, per: Per) -> LossFn:
    def loss(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
        pairs = pairs_of(outputs, data, reference=True, ld_alpha=options.ld_alpha)
        total, after, more = step(pairs, state)
        metrics = pair_metrics(pairs, options.beta * pairs.chosen_ratio, options.beta * pairs.rejected_ratio)
        return LossResult({name: Contribution(total, per=per)}, {**metrics, **more}, after)

    return loss
