"""Batches: every datum once an epoch, an exact cursor. prepare: nothing is lost unseen. train_step reports it all."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Datum, Message, PromptCompletion, Rendered, Text
from finetooth_hooks.data.examples import Segments, Weighted
from finetooth_hooks.protocols import Examples
from finetooth_kit import ByteTokenizer, FakeContext, FakeEngine
from finetooth_methods.batched import Batches, train_step
from finetooth_rows.preparing import prepare
from finetooth_rows.tally import NOTHING_TRAINED, TOO_LONG, TRUNCATED
from hypothesis import given, settings
from hypothesis import strategies as st


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(0, 5), st.booleans())
def test_every_datum_once_an_epoch(size: int, batch: int, epochs: int, seed: int, shuffle: bool) -> None:
    batches = Batches(size, batch, epochs, None, seed, shuffle=shuffle)
    drawn = list(batches)
    assert len(drawn) == batches.total_steps == epochs * math.ceil(size / batch)
    for epoch in range(epochs):
        part = drawn[epoch * batches.steps_per_epoch : (epoch + 1) * batches.steps_per_epoch]
        assert Counter(i for b in part for i in b) == Counter(range(size))
        assert all(len(b) == batch for b in part[:-1])
        if not shuffle:
            assert [i for b in part for i in b] == list(range(size))
    assert batches.epoch == epochs


@given(st.integers(1, 30), st.integers(1, 7), st.floats(0.3, 3), st.integers(0, 25))
def test_restored_cursor_continues_exactly(size: int, batch: int, epochs: float, at: int) -> None:
    whole = list(Batches(size, batch, epochs, None, 3))
    first = Batches(size, batch, epochs, None, 3)
    done = []
    for drawn in first:
        done.append(drawn)
        if len(done) == at:
            break
    second = Batches(size, batch, epochs, None, 3)
    second.restore(json.loads(json.dumps(first.state())))
    assert done + list(second) == whole


def test_epochs_differ_and_seeds_differ() -> None:
    a, b = (list(Batches(50, 50, 2, None, seed)) for seed in (0, 1))
    assert a[0] != a[1] and a[0] != b[0]
    assert list(Batches(50, 50, 2, None, 0)) == a


@pytest.mark.parametrize(
    ("epochs", "max_steps", "total"),
    [(2, None, 6), (2, 4, 4), (2, 100, 6), (0, 11, 11), (0.5, None, 2), (0.01, None, 1)],
)
def test_bounds_on_steps(epochs: float, max_steps: int | None, total: int) -> None:
    batches = Batches(10, 4, epochs, max_steps, 0)
    assert batches.total_steps == len(list(batches)) == total


def test_cursor_of_other_data_is_refused() -> None:
    state = Batches(10, 4, 1, None, 0).state()
    for other, name in ((Batches(11, 4, 1, None, 0), "size"), (Batches(10, 5, 1, None, 0), "batch_size")):
        with pytest.raises(DataError, match=name):
            other.restore(state)


def _render(example: object) -> Rendered:
    assert isinstance(example, Text)
    tokens = tuple(range(len(example.text)))
    return Rendered(tokens, tuple(float(c != ".") for c in example.text))


def _examples(*texts: str) -> Examples:
    return Examples("train", tuple((f"f:{i}", Text(text)) for i, text in enumerate(texts)))


@settings(max_examples=60)
@given(
    st.lists(st.text("ab.", min_size=2, max_size=12).filter(lambda t: set(t[1:]) - {"."}), min_size=1, max_size=8),
    st.integers(2, 8),
    st.sampled_from(["drop", "truncate"]),
)
def test_every_row_is_accounted_for(texts: list[str], longest: int, excess: str) -> None:
    train = replace(FakeContext(Path()).train, max_length=longest, excess_length=excess)
    examples = _examples("ab", *texts)
    done = prepare(examples, _render, train)
    report = done.report
    assert report.rows == len(texts) + 1 == report.used + sum(report.dropped.values())
    assert report.used == len(done.data)
    assert report.tokens == sum(len(d) for d in done.data)
    assert report.trained_tokens == sum(d.mask.sum() for d in done.data)
    assert report.longest == max(len(d) for d in done.data) <= longest
    long = sum(len(t) - 1 > longest for t in texts)
    if excess == "drop":
        assert report.dropped.get(TOO_LONG, 0) == long and not report.changed
    else:
        untrained = report.dropped.get(f"{NOTHING_TRAINED} after truncation", 0)
        assert report.changed.get(TRUNCATED, 0) + untrained == long
    kept = {d.id for d in done.data}
    assert all(id_ not in kept for ids in report.dropped_ids.values() for id_ in ids)


def test_rows_that_cannot_be_used_are_named() -> None:
    train = replace(FakeContext(Path()).train, max_length=3, excess_length="raise")
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used: f:1: 7 tokens, .*max_length=3 \(.* or split\)"):
        prepare(_examples("ab", "abababab"), _render, train)
    several = (
        r"2 of 3 rows cannot be used: f:1: 7 tokens.*; f:2: 5 tokens.*; f:0: nothing to train on: .*\(raise.*remove"
    )
    with pytest.raises(DataError, match=several):
        prepare(_examples("a.", "abababab", "ababab"), _render, train)
    with pytest.raises(DataError, match=r"f:1: nothing to train on"):
        prepare(_examples("ab", "a.."), _render, train)
    longer = r"data.train: no row can be used: 2 longer than train.max_length 3 \(the shortest has 5 tokens\)"
    with pytest.raises(DataError, match=longer):
        prepare(_examples("abababab", "ababab"), _render, replace(train, excess_length="drop"))


SAID = (Message("user", "q"), Message("assistant", "a"))
OUT = "nothing to train on: its flags exclude every answer"
NO_ANSWER = r"f:1: nothing to train on: no assistant message or completion with text"
UNMARKED = "nothing to train on: neither method.train_on nor a flag selects an answer"


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (Conversation((SAID[0], Message("assistant", "a", train=False))), OUT),
        (Conversation((SAID[0], Message("assistant", "a", weights=(Weighted(0, 1, 0.0),)))), OUT),
        (Conversation(SAID), UNMARKED),
        (Segments((("a", False),)), "nothing to train on: none of its segments trains"),
        (Conversation(SAID[:1]), ""),
        (Segments((("", True),)), ""),
        (PromptCompletion("a", ""), ""),
    ],
)
def test_why_nothing_trains(example: Any, reason: str) -> None:
    """What the row could train and its flags do not is left out; a row that has no answer at all is an error."""

    def render(example: object) -> Rendered:
        return Rendered((1, 2), (0.0, float(isinstance(example, Text))))

    train = FakeContext(Path()).train
    rows = (("f:0", Text("ab")), ("f:1", example))
    if not reason:
        with pytest.raises(DataError, match=NO_ANSWER):
            prepare(Examples("train", rows), render, train)
        return
    report = prepare(Examples("train", rows), render, train).report
    assert report.dropped == {reason: 1} and report.dropped_ids == {reason: ("f:1",)} and report.used == 1
    with pytest.raises(
        DataError, match=rf"no row can be used: 1 {reason} \(f:1\) \(change the data or the trained parts\)"
    ):
        prepare(Examples("train", rows[1:]), render, train)


def test_error_of_a_renderer_names_the_row() -> None:
    def refuse(example: object) -> Rendered:
        raise DataError("messages[0]", "no such role", action="use user")

    with pytest.raises(DataError, match=r"f:0: messages\[0\]: no such role \(use user\)"):
        prepare(_examples("ab"), refuse, FakeContext(Path()).train)


def test_train_step_reports_what_happened() -> None:
    engine = FakeEngine(ByteTokenizer())
    data = [Datum.from_tokens([1, 2, 3, 4], id="a"), Datum.from_tokens([5, 6], id="b")]
    spec = FakeContext(Path()).loss("anything")
    report = train_step(engine, data, spec, 0.5)
    wanted = -sum(float(lp.sum()) for lp in engine.logprobs(data)) / 4
    assert report.loss == pytest.approx(wanted, rel=1e-6)
    assert (report.step, report.epoch, report.tokens, report.targets, report.rows) == (1, 0.5, 4, 4, 2)
    assert report.metrics["targets"] == 4


def test_examples_of_a_fake_context_differ_by_split(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)
    train, held_out = (context.examples(split).rows for split in ("train", "eval"))
    assert not {repr(e) for _, e in train} & {repr(e) for _, e in held_out}
    assert PromptCompletion("a", "b") == PromptCompletion("a", "b")
