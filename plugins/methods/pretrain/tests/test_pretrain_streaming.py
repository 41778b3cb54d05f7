"""Streaming: the same windows as when all is read first, in bounded memory, and an exact cursor."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Conversation, DataError, Datum, Message, NotFinite, RecipeError, Rendered, Text
from finetooth_hooks.protocols import Examples
from finetooth_kit import ByteTokenizer, FakeContext, FakeEngine
from finetooth_pretrain.method import PretrainOptions, build
from finetooth_pretrain.streaming import Cursor, DocumentStream, Shape
from finetooth_pretrain.windows import Windows
from finetooth_pretrain.windows import build as rendering
from finetooth_rows.preparing import prepare_examples
from hypothesis import given
from hypothesis import strategies as st

DOCUMENTS = st.lists(st.text(alphabet="abc\u00e9", max_size=30), min_size=1, max_size=12)


class Reads:
    """Rows of texts, and how far they were read. A text that is empty cannot be used."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.furthest = texts, 0
        self.render = rendering({"separator": "auto"}, FakeContext(Path(), tokenizer=ByteTokenizer()))

    def __call__(self, row: int) -> Iterator[tuple[str, Rendered | DataError]]:
        for number, text in enumerate(self.texts[row:], start=row):
            self.furthest = max(self.furthest, number + 1)
            try:
                yield f"d{number}", self.render(Text(text))
            except DataError as error:
                yield f"d{number}", error


def stream(texts: list[str], shape: Shape, cursor: Cursor | None = None, told: Any = None) -> DocumentStream:
    told = told if told is not None else []
    return DocumentStream(
        Reads(texts), shape, cursor=cursor, left_out=lambda error, n: told.append(n), passed=told.append
    )


def windows(texts: list[str], shape: Shape) -> list[Datum]:
    """The same, when all is read first."""
    rows = tuple((f"d{i}", Text(text)) for i, text in enumerate(texts) if text)
    documents = prepare_examples(Examples("train", rows), Reads([]).render, None).data
    return list(Windows(documents, shape.length, isolate=shape.isolate))


def same(a: Datum, b: Datum) -> bool:
    parents = [None if datum.parents is None else datum.parents.tolist() for datum in (a, b)]
    return (
        a.id == b.id
        and bool((a.tokens == b.tokens).all())
        and bool((a.targets == b.targets).all())
        and parents[0] == parents[1]
    )


shapes = st.builds(
    Shape, length=st.integers(1, 20), block=st.integers(1, 7), batch=st.integers(1, 5), seed=st.integers(0, 3),
    isolate=st.booleans(),
)  # fmt: skip


@given(DOCUMENTS, shapes)
def test_a_pass_is_every_window_once(texts: list[str], shape: Shape) -> None:
    texts = [*texts, "ab"]
    told: list[Any] = []
    passes: list[list[Datum]] = [[]]
    for data, cursor in stream(texts, shape, told=told).batches():
        assert 1 <= len(data) <= shape.batch
        passes[-1] += data
        if cursor.passes == len(passes):
            assert cursor.epoch(shape.block) == len(passes)
            passes.append([])
        if cursor.passes == 2:
            break
        assert len(data) == shape.batch or cursor.passes == len(passes) - 1
    expected = windows(texts, shape)
    for found in passes[:2]:
        assert len(found) == len(expected)
        assert all(same(a, b) for a, b in zip(sorted(found, key=_place), expected, strict=True))
    if shape.block == 1:
        assert [datum.id for datum in passes[0]] == [datum.id for datum in expected]
    empty = sum(not text for text in texts)
    assert [n for n in told if isinstance(n, int)] == list(range(1, 2 * empty + 1))
    found_pass = next(one for one in told if not isinstance(one, int))
    assert (found_pass.documents, found_pass.windows) == (len(texts) - empty, len(expected))
    assert found_pass.last == len(expected[-1])


def _place(datum: Datum) -> tuple[int, int]:
    document, offset = datum.id[1:].split("@")
    return int(document), int(offset)


@given(DOCUMENTS, shapes, st.integers(0, 12))
def test_a_restored_stream_goes_on_bit_for_bit(texts: list[str], shape: Shape, steps: int) -> None:
    texts = [*texts, "ab"]
    whole = list(islice(stream(texts, shape).batches(), steps + 9))
    cursor = whole[steps - 1][1] if steps else Cursor()
    kept = Cursor(**json.loads(json.dumps(cursor.as_state())))
    rest = list(islice(stream(texts, shape, kept).batches(), 9))
    for (data, after), (expected, at) in zip(rest, whole[steps:], strict=True):
        assert after == at
        assert len(data) == len(expected) and all(map(same, data, expected))


def test_no_more_is_read_than_must_be() -> None:
    """Two blocks at most are held: one under way and, at its end, the next."""
    shape = Shape(length=10, block=4, batch=2, seed=0, isolate=True)
    reads = Reads(["x" * 9] * 10_000)
    batches = DocumentStream(reads, shape, left_out=lambda *_: None, passed=lambda _: None).batches()
    for step in range(1, 50):
        next(batches)
        assert reads.furthest <= 2 * step + 2 * shape.block + 1


def test_other_data_are_not_taken_for_the_saved_ones() -> None:
    shape = Shape(length=8, block=3, batch=2, seed=0, isolate=True)
    cursor = next(stream(["abcdefgh"] * 9, shape).batches())[1]
    with pytest.raises(DataError, match="cursor: the data have changed from row 1 on since the run was saved"):
        next(stream(["abcdefgx"] * 9, shape, cursor).batches())


def test_shuffled_anew_in_every_pass_and_by_the_seed() -> None:
    def order(seed: int) -> list[list[str]]:
        shape = Shape(length=4, block=50, batch=50, seed=seed, isolate=True)
        return [[datum.id for datum in data] for data, _ in islice(stream(["abc"] * 40, shape).batches(), 2)]

    first, second = order(0)
    assert first != second and sorted(first) == sorted(second) and order(0) == [first, second] != order(1)


# --- the method -------------------------------------------------------------------------------------------------------


def context_of(folder: Path, texts: list[str], **train: Any) -> FakeContext:
    rows = tuple((f"corpus:{i}", Text(text)) for i, text in enumerate(texts, start=1))
    context = FakeContext(folder, given={"train": Examples("train", rows)})
    settings = {"max_length": 16, "batch_size": 4, "max_steps": 12, "epochs": 0.0, **train}
    context.train = dataclasses.replace(context.train, **settings)
    return context


def run(context: FakeContext, state: Any = None, steps: int | None = None, **options: Any) -> tuple[Any, Any, Any]:
    method = build(PretrainOptions(streaming=True, **{"shuffle_buffer": 6, **options}), context)
    engine = FakeEngine(context.tokenizer)
    prepared = method.prepare()
    if state is not None:
        method.restore(state)
        engine.weights_version = state["step"]
    reports = list(islice(method.steps(engine), steps))
    assert prepared.total_steps == context.train.max_steps
    return method, engine, reports


TEXTS = ["".join(map(chr, np.random.default_rng(i).integers(97, 123, size=5 + 9 * i))) for i in range(12)]


@pytest.mark.parametrize("after", [0, 1, 3, 5, 8, 12])
def test_a_restored_method_trains_what_would_have_come_next(tmp_path: Path, after: int) -> None:
    _, whole, reports = run(context_of(tmp_path, TEXTS))
    first, begun, _ = run(context_of(tmp_path, TEXTS), steps=after)
    state = json.loads(json.dumps(first.state()))
    _, rest, later = run(context_of(tmp_path, TEXTS), state)
    assert len(whole.seen) == 12 and begun.seen + rest.seen == whole.seen
    assert [report.epoch for report in later] == [report.epoch for report in reports[after:]]


@pytest.mark.parametrize("failed", [1, 4, 6])
def test_the_state_after_a_failed_step_is_behind_its_data(tmp_path: Path, failed: int) -> None:
    _, whole, _ = run(context_of(tmp_path, TEXTS))
    context = context_of(tmp_path, TEXTS)
    method, engine = build(PretrainOptions(streaming=True, shuffle_buffer=6), context), FakeEngine(context.tokenizer)
    method.prepare()
    steps = method.steps(engine)
    list(islice(steps, failed - 1))
    engine.refuse = NotFinite("the loss is nan")
    with pytest.raises(NotFinite):
        next(steps)
    _, rest, reports = run(context_of(tmp_path, TEXTS), json.loads(json.dumps(method.state())))
    assert engine.seen + rest.seen == whole.seen
    assert len(reports) == 12 - failed


def test_steps_are_bounded_and_passes_are_counted(tmp_path: Path) -> None:
    _, engine, reports = run(context_of(tmp_path, TEXTS, epochs=1.0, max_steps=1000))
    tokens = sum(len(text.encode()) + 1 for text in TEXTS) - 1
    assert sum(len(row) for step in engine.seen for row in step) == tokens == sum(r.tokens for r in reports)
    assert reports[-1].epoch == 1.0


def test_without_max_steps_nothing_begins(tmp_path: Path) -> None:
    context = context_of(tmp_path, [], max_steps=None, epochs=1.0)
    with pytest.raises(RecipeError, match=r"train\.max_steps: method\.streaming .*\(set train\.max_steps, or"):
        run(context)
    with pytest.raises(RecipeError, match=r"train\.epochs: 0\.5 passes"):
        run(context_of(tmp_path, TEXTS, epochs=0.5))


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path: Path) -> None:
    context = context_of(tmp_path, [TEXTS[3], "", TEXTS[4], "", TEXTS[5]])
    _, _, reports = run(context, steps=2)
    assert reports[-1].metrics["left_out"] == 2.0
    assert any(note.startswith("corpus:2: the text is empty: left out") for note in context.notes)
    assert any(
        "3 documents in 8 windows of 16; the last has 13; left out: 2 the text" in note for note in context.notes
    )


def test_rows_left_out_are_counted_by_reason_in_the_end(tmp_path: Path) -> None:
    """An empty text at the beginning ends nothing; a row of another kind has a reason of its own."""
    rows: list[Any] = [(f"corpus:{i}", Text(text)) for i, text in enumerate(["", *TEXTS[3:6], ""], start=1)]
    rows.insert(2, ("corpus:x", Conversation((Message("user", "a"),))))
    context = context_of(tmp_path, [], epochs=1.0, max_steps=1000)
    context.given = {"train": Examples("train", tuple(rows))}
    _, _, reports = run(context)
    assert reports[-1].metrics["left_out"] == 3.0
    assert sum("left out; further rows" in note for note in context.notes) == 2
    assert context.notes[-1].startswith("left out of data.train: 2 the text is empty, 1 the row is a conversation")


def test_the_plan_says_which_end_comes_first(tmp_path: Path) -> None:
    both = build(PretrainOptions(streaming=True), context_of(tmp_path, TEXTS, epochs=2.0, max_steps=9)).prepare()
    assert both.report.notes[1] == (
        "the run ends after 2 passes over data.train (train.epochs) or 9 steps (train.max_steps), whichever comes first"
    )
    steps = build(PretrainOptions(streaming=True), context_of(tmp_path, TEXTS)).prepare()
    assert not any("train.epochs" in note for note in steps.report.notes)


def test_rows_of_another_kind_and_no_text_fail_before_training(tmp_path: Path) -> None:
    context = context_of(tmp_path, [])
    with pytest.raises(DataError, match=r"data\.train: it has no rows"):
        run(context)
    rows = (("x:1", Conversation((Message("user", "a"),))),)
    other = FakeContext(tmp_path, given={"train": Examples("train", rows)}, train=context.train)
    with pytest.raises(DataError, match=r"x:1: .*learns from plain text"):
        run(other)
    with pytest.raises(DataError, match="fewer than 2 tokens"):
        next(stream([""], Shape(4, 1, 1, 0, True)).batches())


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    method, _, _ = run(context_of(tmp_path, TEXTS), steps=2)
    with pytest.raises(DataError, match="cursor: shuffle_buffer was 6 when it was saved and is 7 now"):
        run(context_of(tmp_path, TEXTS), method.state(), shuffle_buffer=7)


def test_the_report_says_what_is_known(tmp_path: Path) -> None:
    context = context_of(tmp_path, TEXTS)
    report = build(PretrainOptions(streaming=True), context).prepare().report
    assert report.notes[0] == (
        "documents are read as they come: up to 768 tokens in windows of 16, shuffled over 1,000 windows"
    )
    assert report.segmented and report.longest == 16
