"""Held-out loss against a sum written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from finetooth_evalloss.evaluator import LossEvaluator, LossOptions
from finetooth_hooks import Conversation, DataError, EngineError, Message, PromptCompletion, RecipeError
from finetooth_rows.storage.token_rows import positions_of
from pydantic import ValidationError

BOS, EOS, OPEN, CLOSE = 0, 1, 2, 3


def logprob(before: int, target: int) -> float:
    """A bigram model: log-probability of `target` after `before`."""
    return -1.0 - ((7 * before + 3 * target) % 11) / 5


class Engine:
    """Scores with the bigram model, as engines do: float32, 0 where the mask is false."""

    def logprobs(self, data, *, role="policy"):
        return [
            np.where(d.mask, [logprob(int(a), int(b)) for a, b in zip(d.tokens, d.targets, strict=True)], 0.0).astype(
                np.float32
            )
            for d in data
        ]


def nll(tokens, trained):
    """(sum of -logprob over trained tokens, their count), from a list of ids and flags."""
    pairs = [(tokens[i - 1], tokens[i]) for i in range(1, len(tokens)) if trained[i]]
    return -sum(logprob(a, b) for a, b in pairs), len(pairs)


def ids(text):
    return [ord(c) + 4 for c in text]


def evaluate(context, step=0, **options):
    evaluator = LossEvaluator(LossOptions(**options), context)
    report = evaluator.prepare()
    return evaluator.evaluate(Engine(), step), report


def test_conversations_count_answers_by_token_not_by_row(make_context):
    rows = [("hello", "hi"), ("what", "a much longer answer than the other"), ("x", "y")]
    evaluation, report = evaluate(make_context(*rows), step=3)
    total = count = 0.0
    for question, answer in rows:
        tokens = [OPEN, *ids(question), CLOSE, OPEN, *ids(answer), CLOSE]
        flags = [False] * (len(question) + 3) + [True] * (len(answer) + 1)
        s, n = nll(tokens, flags)
        total, count = total + s, count + n
    assert evaluation.metrics["loss"] == pytest.approx(total / count, rel=1e-6)
    assert evaluation.metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)
    assert list(evaluation.metrics) == ["loss", "perplexity"]
    assert (evaluation.name, evaluation.step, evaluation.rows, evaluation.higher_is_better) == ("loss", 3, 3, False)
    assert evaluation.baselines == {"uniform guess": math.log(2000)}
    assert (report.split, report.rows, report.used, report.trained_tokens) == ("eval", 3, 3, count)


def test_train_on_all_counts_questions_too(make_context):
    evaluation, _ = evaluate(make_context(("ab", "c")), train_on="all")
    tokens = [OPEN, *ids("ab"), CLOSE, OPEN, *ids("c"), CLOSE]
    total, count = nll(tokens, [False, True, True, True, False, True, True])
    assert evaluation.metrics["loss"] == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize(
    ("method", "noted"), [({"train_on": "last"}, True), ({"train_on": "assistant"}, False), ({}, False)]
)
def test_it_is_said_if_other_messages_train(make_context, method, noted):
    context = make_context(("ab", "c"), options={"method": method})
    evaluate(context)
    assert any("set evaluate.evaluators: [{name: loss, train_on: last}]" in note for note in context.notes) is noted


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_completion_counts_with_its_end(make_context, adds_bos):
    context = make_context(PromptCompletion("2+2=", "4"), adds_bos=adds_bos)
    evaluation, _ = evaluate(context)
    tokens = [*([BOS] if adds_bos else []), *ids("2+2=4"), EOS]
    total, count = nll(tokens, [i >= len(tokens) - 2 for i in range(len(tokens))])
    assert evaluation.metrics["loss"] == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 40])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_texts_count_every_token_once_whatever_the_window(make_context, length, adds_bos):
    texts = ["To be, or not to be", "that is the question", "x"]
    evaluation, report = evaluate(make_context(*texts, max_length=length, adds_bos=adds_bos))
    total = count = 0.0
    for text in texts:
        tokens = [*([BOS] if adds_bos else []), *ids(text)]
        s, n = nll(tokens, [True] * len(tokens))
        total, count = total + s, count + n
    assert evaluation.metrics["loss"] == pytest.approx(total / count, rel=1e-6)
    assert report.trained_tokens == count
    assert report.longest <= length
    assert report.dropped == ({} if adds_bos else {"too short to predict a token": 1})
    assert evaluation.rows == 3


def test_texts_are_read_as_they_were_trained(make_context):
    """`data.markup: special`: what spells a control token is one token."""
    for markup, positions in (("plain", len("ab</s>cd") - 1), ("special", len("ab.cd") - 1)):
        _, report = evaluate(make_context("ab</s>cd", markup=markup))
        assert report.tokens == positions


@pytest.mark.parametrize("length", [1, 2, 5, 9, 40])
def test_data_know_their_lengths_without_being_made(make_context, length):
    evaluator = LossEvaluator(
        LossOptions(), make_context("x", "To be, or not to be", "y", "that is it", max_length=length)
    )
    evaluator.prepare()
    assert positions_of(evaluator.data).tolist() == [len(datum) for datum in evaluator.data]


def test_weights_that_are_no_flags_weigh(make_context, monkeypatch):
    import finetooth_hooks

    context = make_context(("ab", "cd"))
    monkeypatch.setattr(
        context.renderer,
        "render",
        lambda conversation, **_: finetooth_hooks.Rendered((9, 8, 7, 6), (0.0, 0.5, 0.0, 2.0)),
    )
    evaluation, _ = evaluate(context)
    assert evaluation.metrics["loss"] == pytest.approx(-(0.5 * logprob(9, 8) + 2 * logprob(7, 6)) / 2.5, rel=1e-6)


def test_rows_that_are_left_out_are_reported(make_context):
    context = make_context(("q", "a"), ("long " * 20, "a"), ("q", "b"), max_length=20)
    evaluation, report = evaluate(context)
    assert report.dropped == {"longer than train.max_length": 1}
    assert evaluation.rows == 2
    _, report = evaluate(make_context(*[("q", "a")] * 5), rows=2)
    assert report.rows == report.used == 2
    assert report.notes == ("evaluator loss uses the first 2 rows",)


def test_a_row_the_renderer_refuses_is_named(make_context):
    row = Conversation((Message("tool", "x"), Message("assistant", "y")))
    with pytest.raises(DataError, match=r"eval:1: .*'tool'"):
        evaluate(make_context(("q", "a"), row))


def test_texts_among_conversations_are_refused(make_context):
    with pytest.raises(DataError, match="eval:1: a document among"):
        evaluate(make_context(("q", "a"), "text"))
    with pytest.raises(DataError, match="no token to predict"):
        evaluate(make_context("x"))
    with pytest.raises(RecipeError, match=r"data\.eval"):
        evaluate(make_context())


def test_a_score_that_is_not_finite_fails_with_the_row(make_context):
    class Broken(Engine):
        def logprobs(self, data, *, role="policy"):
            scores = super().logprobs(data)
            scores[1][-1] = np.nan
            return scores

    evaluator = LossEvaluator(LossOptions(), make_context(("q", "a"), ("q", "b")))
    evaluator.prepare()
    with pytest.raises(EngineError, match="eval:1"):
        evaluator.evaluate(Broken(), 0)


def test_options_out_of_range_are_refused():
    for options in ({"rows": 0}, {"train_on": "user"}, {"limit": 3}):
        with pytest.raises(ValidationError):
            LossOptions(**options)
