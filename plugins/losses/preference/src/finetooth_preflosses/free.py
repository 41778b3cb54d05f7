"""Losses on pairs without a reference."""

from __future__ import annotations

from finetooth_hooks import Context, Contribution, LossData, LossFn, LossResult, LossState, Metric, Outputs

from finetooth_preflosses import formulas
from finetooth_preflosses.likelihood import negative_log_likelihood
from finetooth_preflosses.metrics import pair_metrics
from finetooth_preflosses.options import CpoOptions, OrpoOptions, SimpoOptions
from finetooth_preflosses.sums import Array, Pairs, pairs_of


def orpo(options: OrpoOptions, context: Context) -> LossFn:
    """ORPO (Hong et al., 2024, arXiv:2403.07691, eq. 6): the chosen answers' log-likelihood, and beta times the odds
    ratio. Components `sft` and `odds_ratio`."""

    def loss(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
        pairs = pairs_of(outputs, data, reference=False)
        chosen, rejected = _means(pairs)
        total = pairs.sum(formulas.odds_ratio(chosen, rejected))
        odds = formulas.log_odds(chosen) - formulas.log_odds(rejected)
        return LossResult(
            {
                "sft": negative_log_likelihood(outputs, data),
                "odds_ratio": Contribution(total, per="groups", weight=options.beta),
            },
            {
                **pair_metrics(pairs, options.beta * chosen, options.beta * rejected),
                "log_odds": Metric(pairs.sum(odds), pairs.count),
            },
            state,
        )

    return loss


def simpo(options: SimpoOptions, context: Context) -> LossFn:
    """SimPO (Meng et al., 2024, arXiv:2405.14734, eq. 6): -log sigmoid(beta (mean_w - mean_l) - gamma)."""

    def loss(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
        pairs = pairs_of(outputs, data, reference=False)
        chosen, rejected = (options.beta * formulas.alpha_reward(mean, options.alpha) for mean in _means(pairs))
        total = pairs.sum(formulas.sigmoid(chosen - rejected - options.gamma, options.label_smoothing))
        parts = {"simpo": Contribution(total, per="groups")}
        if options.sft_weight:
            parts["sft"] = negative_log_likelihood(outputs, data, options.sft_weight)
        return LossResult(parts, pair_metrics(pairs, chosen, rejected), state)

    return loss


def cpo(options: CpoOptions, context: Context) -> LossFn:
    """CPO (Xu et al., 2024, arXiv:2401.08417, eq. 3): -log sigmoid(beta (log pi(w) - log pi(l))), and the chosen
    answers' log-likelihood."""

    def loss(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
        pairs = pairs_of(outputs, data, reference=False)
        chosen, rejected = options.beta * pairs.chosen, options.beta * pairs.rejected
        total = pairs.sum(formulas.sigmoid(chosen - rejected, options.label_smoothing))
        parts = {"cpo": Contribution(total, per="groups")}
        if options.sft_weight:
            parts["sft"] = negative_log_likelihood(outputs, data, options.sft_weight)
        return LossResult(parts, pair_metrics(pairs, chosen, rejected), state)

    return loss


def _means(pairs: Pairs) -> tuple[Array, Array]:
    """Mean log-probability of each answer's targets."""
    return pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
