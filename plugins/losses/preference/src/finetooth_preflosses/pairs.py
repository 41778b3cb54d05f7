"""Losses on pairs against a reference, one pair at a time."""

from __future__ import annotations

from collections.abc import Callable

from finetooth_hooks import Context, Contribution, LossData, LossFn, LossResult, LossState, Outputs

from finetooth_preflosses import formulas
from finetooth_preflosses.divergences import score
from finetooth_preflosses.metrics import pair_metrics
from finetooth_preflosses.options import (
    DiscopopOptions,
    ExoOptions,
    LogitOptions,
    PairOptions,
    RewardOptions,
    RobustOptions,
    SigmoidOptions,
)
from finetooth_preflosses.sums import Array, Pairs, pairs_of

Formula = Callable[[Pairs], Array]
"""Computes the losses of pairs, (P,)."""


def sigmoid(options: SigmoidOptions, context: Context) -> LossFn:
    return _loss("sigmoid", options, lambda pairs: formulas.sigmoid(_logit(pairs, options), options.label_smoothing))


def robust(options: RobustOptions, context: Context) -> LossFn:
    return _loss("robust", options, lambda pairs: formulas.robust(_logit(pairs, options), options.label_smoothing))


def hinge(options: LogitOptions, context: Context) -> LossFn:
    return _loss("hinge", options, lambda pairs: formulas.hinge(_logit(pairs, options)))


def ipo(options: RewardOptions, context: Context) -> LossFn:
    """IPO. Its difference is always that of the answers' means, regardless of `length_normalized`."""
    normalized = options.model_copy(update={"length_normalized": True})

    def formula(pairs: Pairs) -> Array:
        chosen, rejected = _scores(pairs, normalized)
        return formulas.ipo(chosen - rejected, options.beta)

    return _loss("ipo", options, formula)


def exo_pair(options: ExoOptions, context: Context) -> LossFn:
    return _loss("exo_pair", options, lambda pairs: formulas.exo_pair(_logit(pairs, options), options.label_smoothing))


def discopop(options: DiscopopOptions, context: Context) -> LossFn:
    return _loss("discopop", options, lambda pairs: formulas.discopop(_logit(pairs, options), options.tau))


def nca_pair(options: PairOptions, context: Context) -> LossFn:
    return _loss("nca_pair", options, lambda pairs: formulas.nca_pair(*_rewards(pairs, options.beta)))


def sppo_hard(options: PairOptions, context: Context) -> LossFn:
    return _loss(
        "sppo_hard",
        options,
        lambda pairs: formulas.sppo_hard(pairs.chosen_ratio, pairs.rejected_ratio, options.beta),
    )


def apo_zero(options: PairOptions, context: Context) -> LossFn:
    return _loss("apo_zero", options, lambda pairs: formulas.apo_zero(*_rewards(pairs, options.beta)))


def apo_down(options: PairOptions, context: Context) -> LossFn:
    return _loss("apo_down", options, lambda pairs: formulas.apo_down(*_rewards(pairs, options.beta)))


def _loss(name: str, options: PairOptions, formula: Formula) -> LossFn:
    """The loss of a formula: its mean over pairs."""
    margins = isinstance(options, LogitOptions) and options.margin_weight > 0

    def loss(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
        pairs = pairs_of(outputs, data, reference=True, ld_alpha=options.ld_alpha, margins=margins)
        total = pairs.sum(formula(pairs))
        metrics = pair_metrics(pairs, *_rewards(pairs, options.beta))
        return LossResult({name: Contribution(total, per="groups")}, metrics, state)

    return loss


def _rewards(pairs: Pairs, beta: float) -> tuple[Array, Array]:
    """Implicit rewards: beta times the log-ratios."""
    return beta * pairs.chosen_ratio, beta * pairs.rejected_ratio


def _scores(pairs: Pairs, options: RewardOptions) -> tuple[Array, Array]:
    chosen = score(pairs.chosen_ratio, options.f_divergence, options.f_alpha)
    rejected = score(pairs.rejected_ratio, options.f_divergence, options.f_alpha)
    if options.length_normalized:
        return chosen / pairs.chosen_length, rejected / pairs.rejected_length
    return chosen, rejected


def _logit(pairs: Pairs, options: LogitOptions) -> Array:
    """The logit of the preference."""
    chosen, rejected = _scores(pairs, options)
    logit = options.beta * (chosen - rejected)
    return logit - options.margin_weight * pairs.margin if options.margin_weight else logit
