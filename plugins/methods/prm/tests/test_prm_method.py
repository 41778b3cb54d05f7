"""What `prm` makes of answers in steps, against transformers' token classifier, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError, LossData, Message, RecipeError, Text
from finetooth_hooks.data.examples import Stepwise
from finetooth_kit import FakeContext, FakeEngine, parametrize_with_checks
from finetooth_prm.evaluator import StepsEvaluator, StepsOptions, balanced_accuracy, step_metrics
from finetooth_prm.loss import step_cross_entropy
from finetooth_prm.method import Prm, PrmOptions
from finetooth_prm.plugin import ft_losses


@parametrize_with_checks("finetooth_prm.plugin")
def test_conforms(check: Any) -> None:
    check()


def steps(*texts: str, labels: tuple[bool | float | None, ...] = (), prompt: Any = "p ") -> Stepwise:
    return Stepwise(prompt, texts, labels or tuple(i % 2 == 0 for i in range(len(texts))))


@pytest.fixture
def context_of(tmp_path: Path) -> Any:
    return partial(FakeContext.over, tmp_path, tuple(ft_losses()))


def data_of(context: FakeContext, **options: Any) -> Any:
    method = Prm(PrmOptions(**options), context)
    method.prepare()
    return method._data


def test_each_step_counts_at_its_separators_last_token(context_of: Any) -> None:
    context = context_of(steps("one", "two", "three"))
    (datum,) = data_of(context, separator="\n\n")
    text = context.tokenizer.decode([int(t) for t in datum.tokens])
    assert text == "p one\n\ntwo\n\nthree\n\n"
    ends = np.flatnonzero(datum.mask)
    assert [context.tokenizer.decode([int(t) for t in datum.tokens[: end + 1]]) for end in ends] == [
        "p one\n\n", "p one\n\ntwo\n\n", "p one\n\ntwo\n\nthree\n\n"
    ]  # fmt: skip
    assert datum.fields["labels"][ends].tolist() == [1.0, 0.0, 1.0]
    assert (datum.fields["labels"][~datum.mask] == 0).all()


def test_only_the_last_step_may_train(context_of: Any) -> None:
    context = context_of(steps("one", "two"), steps("one"))
    data = data_of(context, train_on="last")
    assert [int(datum.mask.sum()) for datum in data] == [1, 1]
    assert [float(datum.fields["labels"][datum.mask][0]) for datum in data] == [0.0, 1.0]


def test_a_step_without_a_label_leads_to_the_next_and_trains_nothing(context_of: Any) -> None:
    """As the format `stepwise` gives the alternatives of a step: what comes before them has no label of its own."""
    context = context_of(steps("one", "two", "three", labels=(None, True, None)), steps("one", labels=(False,)))
    datum, _ = data_of(context)
    text = context.tokenizer.decode([int(t) for t in datum.tokens[: int(np.flatnonzero(datum.mask)[0]) + 1]])
    assert int(datum.mask.sum()) == 1 and text == "p one\ntwo\n"
    assert datum.fields["labels"][datum.mask].tolist() == [1.0]


def test_a_separator_may_be_a_special_token(context_of: Any) -> None:
    context = context_of(steps("one", "two"))
    end = context.tokenizer.eos_id
    (datum,) = data_of(context, separator="<|im_end|>")
    assert [int(t) for t in datum.tokens[datum.mask]] == [end, end]


def test_a_prompt_in_messages_is_followed_by_what_begins_an_answer(context_of: Any) -> None:
    context = context_of(steps("one", "two", prompt=(Message("user", "q"),)))
    (datum,) = data_of(context)
    assert context.tokenizer.decode([int(t) for t in datum.tokens]) == "user: q<|im_end|>assistant: one\ntwo\n"


def test_labels_may_be_probabilities(context_of: Any) -> None:
    (datum,) = data_of(context_of(steps("a", "b", "c", labels=(0.25, 1, 0))))
    assert datum.fields["labels"][datum.mask].tolist() == [0.25, 1.0, 0.0]


REFUSED = {
    "counts": (Stepwise("p", ("a", "b"), (True,)), "another number of labels than of steps"),
    "empty": (steps("a", " "), "a step is empty"),
    "range": (steps("a", "b", labels=(1, -1)), "a label is not true, false or a number from 0 to 1"),
    "none": (Stepwise("p", (), ()), "it has no steps"),
}


@pytest.mark.parametrize("bad", REFUSED)
def test_a_row_that_cannot_be_used_is_named_or_counted(context_of: Any, bad: str) -> None:
    row, problem = REFUSED[bad]
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {problem}.*method.unusable"):
        data_of(context_of(steps("a", "b"), row))
    method = Prm(PrmOptions(unusable="drop"), context_of(steps("a", "b"), row))
    report = method.prepare().report
    assert report.dropped == {problem: 1} and len(method._data) == 1
    assert report.notes == ("2 steps, 50% of them right",)


def test_one_label_everywhere_is_refused(context_of: Any) -> None:
    with pytest.raises(DataError, match="every one of 3 steps has the label 1"):
        data_of(context_of(steps("a", "b", labels=(True, True)), steps("c", labels=(True,))))


def test_other_rows_and_split_rows_are_refused(context_of: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the row has no steps"):
        data_of(context_of(Text("once")))
    context = context_of(steps("a", "b"))
    for how in ("split", "truncate_turns"):
        context.train = replace(context.train, excess_length=how)
        with pytest.raises(RecipeError, match="would not see the steps before"):
            data_of(context)


def test_a_cut_answer_keeps_its_first_steps(context_of: Any) -> None:
    context = context_of(steps("a" * 100, "b" * 100, "c" * 100))
    context.train = replace(context.train, excess_length="truncate")
    (datum,) = data_of(context)
    assert int(datum.mask.sum()) == 2


def test_the_loss_is_that_of_a_token_classifier_with_two_labels() -> None:
    """TRL's PRMTrainer trains transformers' token classifier: cross entropy over labels, -100 elsewhere."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    logits = torch.tensor(random.normal(scale=2.0, size=(4, 9, 2)), dtype=torch.float64, requires_grad=True)
    mask = random.random((4, 9)) < 0.4
    labels = random.integers(0, 2, size=(4, 9))
    marked = torch.tensor(np.where(mask, labels, -100))
    wanted = torch.nn.functional.cross_entropy(logits.reshape(-1, 2), marked.reshape(-1))
    wanted.backward()

    values = (logits[..., 1] - logits[..., 0]).detach().requires_grad_(True)
    data = LossData(
        mask=torch.tensor(mask), targets=torch.zeros(4, 9, dtype=torch.long),
        fields={"labels": torch.tensor(np.where(mask, labels, 0.0))}, scalars={}, group=torch.arange(4),
    )  # fmt: skip
    result = step_cross_entropy({"values": values}, data, {})
    total = result.contributions["step_cross_entropy"].total / mask.sum()
    total.backward()
    assert total.item() == pytest.approx(wanted.item(), rel=1e-12)
    torch.testing.assert_close(values.grad, logits.grad[..., 1], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(-values.grad, logits.grad[..., 0], rtol=1e-10, atol=1e-14)
    called = (values > 0).numpy()
    share = float(result.metrics["steps/accuracy"].total) / float(result.metrics["steps/accuracy"].count)
    assert share == pytest.approx((called[mask] == labels[mask]).mean())


def test_balanced_accuracy_by_hand() -> None:
    answers = [
        (np.array([1.0, 1.0, -1.0]), np.array([True, True, True])),
        (np.array([2.0, -2.0]), np.array([False, False])),
    ]
    assert balanced_accuracy(answers) == pytest.approx((2 / 3 + 1 / 2) / 2)
    metrics = step_metrics(answers * 20, np.random.default_rng(0))
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert (metrics["accuracy_right"], metrics["accuracy_wrong"]) == (pytest.approx(2 / 3), 0.5)
    assert metrics["balanced_accuracy_low"] <= metrics["balanced_accuracy"] <= metrics["balanced_accuracy_high"]


def test_the_evaluator_takes_the_methods_separator(context_of: Any) -> None:
    context = context_of(steps("one", "two"), steps("three"), split="eval")
    context.options = {"method": {"separator": "##"}}
    evaluator = StepsEvaluator(StepsOptions(), context)
    evaluator.prepare()
    assert context.tokenizer.decode([int(t) for t in evaluator._data[0].tokens]) == "p one##two##"
    evaluation = evaluator.evaluate(FakeEngine(context.tokenizer), 3)
    assert next(iter(evaluation.metrics)) == "balanced_accuracy" and evaluation.rows == 2
    # every value of the fake engine is above 0, and so every step called right
    assert evaluation.metrics["balanced_accuracy"] == 0.5
