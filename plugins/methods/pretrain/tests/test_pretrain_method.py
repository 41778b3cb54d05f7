"""Windows over documents: every token once, in order; and that a restored run goes on exactly."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Conversation, DataError, Message, RecipeError, Text
from finetooth_hooks.protocols import Examples
from finetooth_kit import ByteTokenizer, FakeContext, FakeEngine, parametrize_with_checks
from finetooth_pretrain.method import Pretrain, PretrainOptions
from finetooth_pretrain.windows import Windows, build, separator_id
from finetooth_rows.preparing import prepare_examples
from hypothesis import given
from hypothesis import strategies as st


@parametrize_with_checks("finetooth_pretrain.plugin")
def test_conforms(check: Any) -> None:
    check()


class Framed(ByteTokenizer):
    """Puts the beginning-of-text token before every text."""

    @property
    def adds_bos(self) -> bool:
        return True


DOCUMENTS = st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=6)


@given(DOCUMENTS, st.integers(1, 40), st.booleans())
def test_every_token_is_predicted_once_and_in_order(texts: list[str], length: int, framed: bool) -> None:
    tokenizer = Framed() if framed else ByteTokenizer()
    named = [(f"d{i}", text) for i, text in enumerate(texts)]
    context = FakeContext(Path(), tokenizer=tokenizer)
    render = build({"separator": "auto"}, context)
    end = separator_id(tokenizer, "auto")
    examples = Examples("train", tuple((name, Text(text)) for name, text in named))
    documents = prepare_examples(examples, render, None).data
    wanted: list[int] = []
    for text in texts:
        wanted += ([tokenizer.bos_id] if framed else []) + list(text.encode()) + [end]
    assert documents.span(0, documents.token_count).tolist() == wanted
    windows = Windows(documents, length, isolate=True)
    data = list(windows)
    apart = np.concatenate([[i] * len(render(Text(text)).tokens) for i, text in enumerate(texts)])
    at = 0
    for datum in data:  # a segment goes from the beginning of a document to its separator
        of = apart[at : at + len(datum)]
        at += len(datum)
        assert (datum.parents is None) == (len(set(of)) == 1)
        assert datum.parents is None or datum.parents.tolist() == [
            i - 1 if i and of[i - 1] == document else -1 for i, document in enumerate(of)
        ]
    assert all(datum.parents is None for datum in Windows(documents, length))
    assert [datum.id for datum in windows[::-1]] == [datum.id for datum in data[::-1]]
    assert [int(t) for datum in data for t in datum.targets] == wanted[1:]
    assert [int(t) for datum in data for t in datum.tokens] == wanted[:-1]
    assert all(len(datum) == length for datum in data[:-1]) and 1 <= len(data[-1]) <= length
    assert windows.positions.tolist() == [len(datum) for datum in data]
    assert all(datum.mask.all() for datum in data)
    assert len({datum.id for datum in data}) == len(data)
    for datum in data:  # a window is named after the document in which it begins, and the place in it
        name, offset = datum.id.split("@")
        assert render(Text(texts[int(name[1:])])).tokens[int(offset)] == datum.tokens[0]


def context_of(folder: Path, *texts: str, length: int = 16) -> FakeContext:
    rows = tuple((f"corpus.txt:{i}", Text(text)) for i, text in enumerate(texts, start=1))
    context = FakeContext(folder, given={"train": Examples("train", rows)})
    context.train = dataclasses.replace(context.train, max_length=length)
    return context


def test_the_report_counts(tmp_path: Path) -> None:
    context = context_of(tmp_path, "a" * 20, "b" * 9)
    prepared = Pretrain(PretrainOptions(), context).prepare()
    report = prepared.report  # 21 + 10 tokens, 30 predicted, in windows of 16 and 14
    assert (report.rows, report.used, report.tokens, report.trained_tokens, report.longest) == (2, 2, 30, 30, 16)
    assert report.notes == (
        "2 documents, 31 tokens, cut into 2 windows of 16; the last has 14",
        "attention and positions stop at the ends of documents",
    )
    assert report.segmented
    assert (prepared.total_steps, prepared.steps_per_epoch) == (2, 1)


def test_the_report_says_which_setting_left_documents_out(tmp_path: Path) -> None:
    method = Pretrain(PretrainOptions(), context_of(tmp_path, "a" * 20, "b" * 9))
    report = method.prepare().report
    documents = dataclasses.replace(report, settings={"twice": "data.deduplicate"}, settled=("twice",))
    told = method._report(documents, 31, 16)
    assert (told.settings, told.settled) == (documents.settings, documents.settled)


def run(context: FakeContext, state: Any = None, steps: int | None = None) -> tuple[Pretrain, FakeEngine]:
    method, engine = Pretrain(PretrainOptions(), context), FakeEngine(context.tokenizer)
    method.prepare()
    if state is not None:
        method.restore(state)
        engine.weights_version = state["step"]
    list(islice(method.steps(engine), steps))
    return method, engine


@pytest.mark.parametrize("after", [0, 1, 3, 4, 6])
def test_a_restored_method_trains_what_would_have_come_next(tmp_path: Path, after: int) -> None:
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, size=16 * 10)))
    _, whole = run(context_of(tmp_path, text))
    first, begun = run(context_of(tmp_path, text), steps=after)
    state = json.loads(json.dumps(first.state()))
    _, rest = run(context_of(tmp_path, text), state)
    assert len(whole.seen) == 6
    assert begun.seen + rest.seen == whole.seen


def test_rows_of_another_kind_point_to_sft(tmp_path: Path) -> None:
    rows = (("x.jsonl:1", Text("a")), ("x.jsonl:2", Conversation((Message("user", "a"),))))
    context = FakeContext(tmp_path, given={"train": Examples("train", rows)})
    with pytest.raises(DataError, match=r"x\.jsonl:2: .*learns from plain text \(set method: sft"):
        Pretrain(PretrainOptions(), context).prepare()


def test_an_empty_document_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"corpus\.txt:2: the text is empty"):
        Pretrain(PretrainOptions(), context_of(tmp_path, "a", "")).prepare()


class Vocabulary(ByteTokenizer):
    """Only the given special tokens."""

    def __init__(self, *special: str) -> None:
        super().__init__()
        self._only = special

    def token_id(self, token: str) -> int | None:
        return 300 + self._only.index(token) if token in self._only else None

    @property
    def eos_id(self) -> int | None:
        return 299


def test_the_separator_is_what_the_model_was_pretrained_with() -> None:
    assert separator_id(Vocabulary("</s>", "<|endoftext|>"), "auto") == 301
    assert separator_id(Vocabulary("</s>"), "auto") == 300
    assert separator_id(Vocabulary(), "auto") == 299  # the tokenizer's own
    assert separator_id(Vocabulary("<|sep|>"), "<|sep|>") == 300
    with pytest.raises(RecipeError, match=r"method\.separator: the vocabulary has no token '<\|no\|>'"):
        separator_id(Vocabulary(), "<|no|>")


def test_a_strange_first_loss_is_noted(tmp_path: Path) -> None:
    context = context_of(tmp_path, "a" * 200)
    context.facts = dataclasses.replace(context.facts, first_loss=(0.2, 1.0))
    run(context)
    assert len(context.notes) == 1 and "nats per token" in context.notes[0]


def test_a_real_corpus(tmp_path: Path, shared: Path) -> None:
    text = (shared / "raw/tinyshakespeare.txt").read_text(encoding="utf-8")
    prepared = Pretrain(PretrainOptions(), context_of(tmp_path, text, length=512)).prepare()
    assert prepared.report.trained_tokens == len(text.encode())
    assert prepared.report.used == -(-len(text.encode()) // 512)
