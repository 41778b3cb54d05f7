"""Methods that learn from preferences: pairs of answers, and answers with a label."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Evaluator, Method, hookimpl

LOSSES = {name: {"loss": name} for name in ("ipo", "hinge", "robust", "discopop", "aot", "bco_pair", "apo_zero")}
"""Losses that are methods in other tools."""


@hookimpl
def ft_methods() -> Iterator[Method]:
    for name, summary in (
        ("dpo", "prefer chosen to rejected answers, compared with a reference model; by one or several losses"),
        ("orpo", "prefer chosen to rejected answers by odds, and keep the chosen ones likely; no reference"),
        ("simpo", "prefer chosen to rejected answers by mean log-probability; no reference"),
        ("cpo", "prefer chosen to rejected answers by log-probability, and keep the chosen ones likely; no reference"),
    ):
        yield Method(
            name=name,
            build=f"finetooth_preference.method:{name}",
            summary=summary,
            evaluators=("pairs",),
            headline=("rewards/accuracies",),
            elsewhere=LOSSES if name == "dpo" else {},
            learns_from="pairs of a better and a worse answer" if name == "dpo" else "",
            rows="1,000 to 100,000 pairs (Rafailov et al., 2023, 2305.18290)" if name == "dpo" else "",
        )
    yield Method(
        name="kto",
        build="finetooth_preference.kto:Kto",
        summary="raise desirable answers, lower undesirable ones, compared with a reference model; needs no pairs",
        learns_from="answers with a thumb up or down",
        rows="1,000 rows and more; one kind may be rarer (Ethayarajh et al., 2024, 2402.01306)",
        evaluators=("labels",),
        headline=("rewards/margins",),
    )


@hookimpl
def ft_evaluators() -> Iterator[Evaluator]:
    yield Evaluator(
        name="pairs",
        build="finetooth_preference.pairs_evaluator:build",
        summary="how often the chosen answer of a held-out pair has the higher reward",
    )
    yield Evaluator(
        name="labels",
        build="finetooth_preference.labels_evaluator:build",
        summary="how often a held-out desirable answer has a higher reward than an undesirable one",
    )
