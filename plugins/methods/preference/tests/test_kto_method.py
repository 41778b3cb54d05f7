"""kto: the balance of its answers, answers to other prompts, and the estimate made from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError, Datum, Message, RecipeError
from finetooth_hooks.data.examples import Labelled, Pair
from finetooth_kit import FakeEngine
from finetooth_preference.mismatched import kl_estimate, mismatched

Contexts = Callable[..., Any]


def build(context: Any, **options: Any) -> Any:
    return context.build("method", {"name": "kto", **options})


def datum(prompt: list[int], answer: list[int]) -> Datum:
    return Datum.from_tokens([*prompt, *answer], [0.0] * len(prompt) + [1.0] * len(answer), id=str(prompt[0]))


ROWS = [datum([1, 2, 3], [10, 11]), datum([4], [12, 13, 14]), datum([5, 6], [15])]


def test_answers_go_to_the_next_prompt() -> None:
    found = [[*map(int, d.tokens), int(d.targets[-1])] for d in mismatched(ROWS, 100)]
    assert found == [[1, 2, 3, 15], [4, 10, 11], [5, 6, 12, 13, 14]]
    trained = [[int(t) for t, counts in zip(d.targets, d.mask, strict=True) if counts] for d in mismatched(ROWS, 100)]
    assert trained == [[15], [10, 11], [12, 13, 14]]
    assert [len(d) for d in mismatched(ROWS, 2)] == [2, 2]  # cut; what has no answer left is left out


class Two(FakeEngine):
    """The policy gives each target -1, the reference -1.5 (or less)."""

    gap = 0.5

    def logprobs(self, data: Any, *, role: str = "policy") -> Any:
        each = -1.0 if role == "policy" else -1.0 - self.gap
        return [np.where(d.mask, each, 0.0).astype(np.float32) for d in data]


def test_the_kl_is_their_mean_log_ratio_and_never_negative(make_context: Contexts) -> None:
    engine = Two(make_context([]).tokenizer)
    assert kl_estimate(engine, ROWS, 100) == pytest.approx(0.5 * (1 + 2 + 3) / 3)
    engine.gap = -0.5
    assert kl_estimate(engine, ROWS, 100) == 0.0
    assert kl_estimate(engine, ROWS[:1], 100) == 0.0


@pytest.mark.parametrize(("size", "batches"), [(3, [3, 3, 3]), (4, [4, 4, 1])])
def test_every_datum_of_a_step_has_its_kl(
    make_context: Contexts, answers: list[Labelled], size: int, batches: list[int]
) -> None:
    """Also the last one of an epoch, which may be alone in its batch."""
    context = make_context(answers, batch_size=size, epochs=1)
    method = build(context, beta=0.5)
    method.prepare()
    engine = Two(context.tokenizer)
    reports = list(method.steps(engine))
    assert [report.rows for report in reports] == batches
    assert all(report.metrics["kl"] > 0 for report in reports)
    both = [r.metrics for r in reports if {"rewards/chosen", "rewards/rejected"} <= r.metrics.keys()]
    assert both
    for metrics in both:
        assert metrics["rewards/margins"] == metrics["rewards/chosen"] - metrics["rewards/rejected"]


def test_the_plan_says_which_weights_balance(make_context: Contexts, answers: list[Labelled]) -> None:
    report = build(make_context(answers)).prepare().report  # 6 desirable, 3 undesirable
    assert "6 desirable and 3 undesirable answers, weighted 2 to 1" in report.notes[-1]
    assert "desirable_weight between 0.5 and 0.665, or method.undesirable_weight between 1.5 and 2" in report.notes[-1]
    few = build(make_context(answers), desirable_weight=0.1).prepare().report
    assert "weighted 0.2 to 1; 1 to 1.33 is recommended" in few.notes[-1]
    balanced = build(make_context(answers), undesirable_weight=1.8).prepare().report
    assert "weighted 1.11 to 1, in the recommended range" in balanced.notes[-1]


def test_answers_of_one_kind_are_refused(make_context: Contexts, answers: list[Labelled]) -> None:
    good = [row for row in answers if row.label]
    with pytest.raises(DataError, match=r"data.train: all 6 answers are desirable.*add undesirable answers"):
        build(make_context(good)).prepare()


def test_a_label_that_is_none_is_counted(make_context: Contexts, answers: list[Labelled]) -> None:
    row = Labelled((Message("user", "q"),), (Message("assistant", "a"),), 0.3)
    report = build(make_context([*answers, row])).prepare().report
    assert report.dropped == {"its label is a number, not true or false": 1}
    with pytest.raises(DataError, match=r"train:9: its label is a number"):
        build(make_context([*answers, row]), bad_rows="raise").prepare()
    with pytest.raises(DataError, match=r"train:0: the row is a pair, .*set method: dpo"):
        build(make_context([Pair((Message("user", "q"),), (Message("assistant", "a"),), ())])).prepare()


def test_a_kl_needs_other_prompts_and_a_reference_at_hand(make_context: Contexts) -> None:
    with pytest.raises(RecipeError, match=r"train.batch_size: .*a batch of 1 has none"):
        build(make_context([], batch_size=1))
    with pytest.raises(RecipeError, match=r"method.reference.policy: .*cannot be precomputed"):
        build(make_context([]), reference="precomputed")
    build(make_context([], batch_size=1), loss="apo_zero_unpaired", reference="precomputed")
