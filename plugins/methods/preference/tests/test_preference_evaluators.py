"""Held-out preferences: rewards by hand, the interval, the baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import EngineError, MemoryEstimate, Plan
from finetooth_hooks.data.examples import Labelled, Pair
from finetooth_kit import FakeEngine
from finetooth_methods.intervals import wilson
from finetooth_preference.labels_evaluator import area

Contexts = Callable[..., Any]


class Scripted(FakeEngine):
    """Log-probability of a target: a hash of it, nearer 0 under the reference."""

    def logprobs(self, data: Any, *, role: str = "policy") -> Any:
        scale = 1.0 if role == "policy" else 0.4
        return [np.where(d.mask, -scale * (d.targets * 7 % 11 - 5) / 4, 0.0).astype(np.float32) for d in data]


def plan(context: Any, method: str, **options: Any) -> None:
    context.plan = Plan({}, {"method": f"x:{method}"}, {"method": options}, context.train, (), MemoryEstimate({}))


def rewards(evaluator: Any, factor: float = 1.0, mean: bool = False) -> np.ndarray:
    found = []
    for datum in evaluator._data:
        each = -(datum.targets[datum.mask] * 7 % 11 - 5) / 4
        found.append(factor * (each.mean() if mean else each.sum()))
    return np.array(found)


@pytest.mark.parametrize(
    ("method", "options", "factor", "mean"),
    [
        ("dpo", {"reference": {"policy": "auto"}, "beta": 0.2}, 0.2 * 0.6, False),
        ("dpo", {"reference": {"policy": "auto"}, "loss": {"name": "ipo", "beta": 0.5}}, 0.5 * 0.6, False),
        ("cpo", {"beta": 0.2}, 1.0, False),
        ("simpo", {"beta": 2.0}, 1.0, True),
        ("sft", {}, 1.0, True),
    ],
)
def test_rewards_are_those_of_the_method(
    make_context: Contexts, pairs: list[Pair], method: str, options: Any, factor: float, mean: bool
) -> None:
    context = make_context(pairs)
    plan(context, method, **options)
    evaluator = context.build("evaluator", "pairs")
    report = evaluator.prepare()
    assert (report.split, report.rows, report.used) == ("eval", 10, 10)
    found = evaluator.evaluate(Scripted(context.tokenizer), 5)
    wanted = rewards(evaluator, factor, mean)
    ahead = (wanted[0::2] > wanted[1::2]).mean()
    assert 0 < ahead < 1
    assert found.metrics["rewards/accuracies"] == pytest.approx(ahead)
    assert found.metrics["rewards/margins"] == pytest.approx((wanted[0::2] - wanted[1::2]).mean(), rel=1e-5)
    interval = (found.metrics["rewards/accuracies_low"], found.metrics["rewards/accuracies_high"])
    assert interval == pytest.approx(wilson(ahead, 10))
    assert found.baselines == {"longer answer": 1.0, "shorter answer": 0.0}
    assert (found.name, found.step, found.rows, next(iter(found.metrics))) == ("pairs", 5, 10, "rewards/accuracies")


def test_ties_count_half(make_context: Contexts, pairs: list[Pair]) -> None:
    class Same(FakeEngine):
        def logprobs(self, data: Any, *, role: str = "policy") -> Any:
            return [np.where(d.mask, -1.0, 0.0).astype(np.float32) for d in data]

    context = make_context(pairs)
    plan(context, "dpo", reference={})
    evaluator = context.build("evaluator", {"name": "pairs", "rows": 4})
    evaluator.prepare()
    found = evaluator.evaluate(Same(context.tokenizer), 0)
    assert (found.metrics["rewards/accuracies"], found.rows) == (0.5, 4)


def test_a_score_that_is_not_finite_names_the_row(make_context: Contexts, pairs: list[Pair]) -> None:
    class Broken(Scripted):
        def logprobs(self, data: Any, *, role: str = "policy") -> Any:
            scores = super().logprobs(data)
            scores[3][data[3].mask] = np.nan
            return scores

    evaluator = make_context(pairs).build("evaluator", "pairs")
    evaluator.prepare()
    with pytest.raises(EngineError, match="eval:1#rejected"):
        evaluator.evaluate(Broken(make_context([]).tokenizer), 0)


def test_the_area_counts_every_pair(make_context: Contexts, answers: list[Labelled]) -> None:
    random = np.random.default_rng(0)
    values, good = random.integers(0, 5, 40).astype(float), random.random(40) < 0.3
    by_hand = [(a > b) + 0.5 * (a == b) for a in values[good] for b in values[~good]]
    assert area(values, good) == pytest.approx(float(np.mean(by_hand)))
    context = make_context(answers)
    plan(context, "kto", reference={"policy": "auto"}, beta=0.1)
    evaluator = context.build("evaluator", "labels")
    evaluator.prepare()
    found = evaluator.evaluate(Scripted(context.tokenizer), 1)
    wanted, labels = rewards(evaluator, 0.06), np.array([bool(row.label) for row in answers])
    assert found.metrics["rewards/auc"] == pytest.approx(area(wanted, labels))
    assert found.metrics["rewards/margins"] == pytest.approx(wanted[labels].mean() - wanted[~labels].mean(), rel=1e-5)


def test_held_out_rows_that_are_too_long_are_counted(make_context: Contexts, pairs: list[Pair]) -> None:
    context = make_context(pairs)
    context.train = replace(context.train, max_length=38)
    report = context.build("evaluator", "pairs").prepare()
    assert sum(report.dropped.values()) == 10 - report.used
