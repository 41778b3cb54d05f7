"""What `rm` makes of rows, what it refuses by name, and what its evaluator says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError, Message, RecipeError, Text
from finetooth_hooks.data.examples import Labelled, Pair
from finetooth_kit import FakeContext, FakeEngine
from finetooth_methods.intervals import wilson
from finetooth_reward.evaluator import RewardEvaluator, RewardOptions, pair_metrics, regression_metrics
from finetooth_reward.method import Rm, RmOptions
from finetooth_reward.plugin import ft_losses


def said(role: str, text: str) -> tuple[Message, ...]:
    return (Message(role, text),)


def pair(chosen: str, rejected: str, margin: float | None = None, prompt: str = "q") -> Pair:
    return Pair(said("user", prompt), said("assistant", chosen), said("assistant", rejected), margin)


@pytest.fixture
def context_of(tmp_path: Path) -> Any:
    return partial(FakeContext.over, tmp_path, tuple(ft_losses()))


def rm(context: FakeContext, **options: Any) -> Rm:
    method = Rm(RmOptions(**options), context)
    method.prepare()
    return method


def test_a_pair_is_two_texts_that_count_at_their_last_token(context_of: Any) -> None:
    context = context_of(pair("yes", "no", margin=2.0), pair("a", "b"))
    chosen, rejected, *_ = rm(context)._data
    for datum, answer in ((chosen, "yes"), (rejected, "no")):
        text = context.tokenizer.decode([int(t) for t in datum.tokens])
        assert text == f"user: q<|im_end|>assistant: {answer}<|im_end|>"
        assert np.flatnonzero(datum.mask).tolist() == [len(datum) - 1]
    assert chosen.group == rejected.group == "rows.jsonl:1"
    assert [datum.scalars["margin"] for datum in rm(context)._data] == [2.0, 2.0, 0.0, 0.0]
    assert [datum.scalars["margin"] for datum in rm(context, margin=False)._data] == [0.0] * 4


def test_a_batch_counts_pairs(context_of: Any) -> None:
    context = context_of(*(pair(f"long {i}", "s") for i in range(6)))
    method = rm(context)
    engine = FakeEngine(context.tokenizer)
    reports = list(method.steps(engine))
    assert [len(seen) for seen in engine.seen] == [8, 4, 8, 4]  # batch_size 4: 4 and 2 pairs, twice
    assert len(reports) == 4


def test_plain_texts_end_with_the_end_token_unless_it_pads(context_of: Any) -> None:
    context = context_of(Labelled("", "good", 1.0), Labelled("", "bad", 0.0))
    assert context.tokenizer.pad_id != context.tokenizer.eos_id
    tokens = [int(t) for t in rm(context)._data[0].tokens]
    assert tokens == [*context.tokenizer.encode("good"), context.tokenizer.eos_id]


REFUSED = {
    "the same": (pair("x", "x"), "chosen and rejected are the same"),
    "empty": (pair(" ", "x"), "an answer is empty"),
    "negative margin": (pair("x", "y", margin=-1.0), "the margin is below 0"),
}


@pytest.mark.parametrize("bad", REFUSED)
def test_a_row_that_cannot_be_used_is_named_or_counted(context_of: Any, bad: str) -> None:
    row, problem = REFUSED[bad]
    context = context_of(pair("a", "b"), row)
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {problem}.*method.unusable"):
        rm(context)
    method = Rm(RmOptions(unusable="drop"), context)
    report = method.prepare().report
    (reason,) = report.dropped
    assert problem in reason and report.dropped[reason] == 1
    assert len(method._data) == 2


def test_long_pairs_are_counted_or_named_and_never_cut(context_of: Any) -> None:
    context = context_of(pair("a", "b"), pair("a" * 300, "b"))
    method = Rm(RmOptions(), context)
    assert method.prepare().report.dropped == {"longer than train.max_length": 1}
    context.train = replace(context.train, excess_length="raise")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: 3\d\d tokens, more than train.max_length=256"):
        rm(context)
    context.train = replace(context.train, excess_length="truncate")
    with pytest.raises(RecipeError, match=r"train.excess_length.*set it to drop or raise"):
        rm(context)


def test_rows_of_two_kinds_are_refused(context_of: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the row is one of answers with a number"):
        rm(context_of(pair("a", "b"), Labelled(said("user", "q"), said("assistant", "a"), 1.0)))


def test_labels_that_are_all_the_same_are_refused(context_of: Any) -> None:
    with pytest.raises(DataError, match="every one of 2 rows has the label 3"):
        rm(context_of(Labelled("", "a", 3.0), Labelled("", "b", 3.0)))


def test_a_text_points_to_the_format(context_of: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*plain text.*data\.format: labelled_text"):
        rm(context_of(Text("once")))


def test_a_coefficient_beside_a_loss_of_its_own_is_refused(context_of: Any) -> None:
    with pytest.raises(RecipeError, match="center_rewards_coefficient"):
        rm(context_of(pair("a", "b")), loss="bradley_terry", center_rewards_coefficient=0.1)


def test_metrics_of_pairs_by_hand() -> None:
    found = pair_metrics(np.array([2.0, 0.0, 1.0, 5.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    assert found["accuracy"] == 0.625  # right, wrong, a tie, right
    assert found["margin"] == pytest.approx(1.0)
    assert found["reward"] == pytest.approx((8.0 + 4.0) / 8)
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(0.625, 4)
    regression = regression_metrics(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    assert regression["mse"] == pytest.approx(1 / 3)
    assert regression["correlation"] == pytest.approx(0.98198, abs=1e-5)


def test_the_evaluator_ranks_held_out_pairs_beside_what_length_tells(context_of: Any) -> None:
    context = context_of(pair("longer", "x"), pair("y", "longer"), pair("longest of", "z"), split="eval")
    evaluator = RewardEvaluator(RewardOptions(), context)
    assert evaluator.prepare().used == 6
    engine = FakeEngine(context.tokenizer)
    evaluation = evaluator.evaluate(engine, 0)
    scores = [float(each["scores"]) for each in engine.forward(evaluator._data).outputs]
    wanted = np.mean([scores[i] > scores[i + 1] for i in (0, 2, 4)])
    assert evaluation.metrics["accuracy"] == pytest.approx(wanted)
    assert evaluation.baselines == {"longer answer": pytest.approx(2 / 3), "shorter answer": pytest.approx(1 / 3)}
    assert (evaluation.rows, next(iter(evaluation.metrics))) == (3, "accuracy")
