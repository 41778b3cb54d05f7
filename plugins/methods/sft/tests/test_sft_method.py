"""What sft makes of rows, in which order it trains them, and that a restored run goes on exactly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, PromptCompletion, Rendered, Text
from finetooth_hooks.data.examples import Labelled, Pair, Segments, Stepwise, Task, Weighted
from finetooth_kit import ByteTokenizer, FakeContext, FakeEngine, parametrize_with_checks
from finetooth_kit.byte_tokenizer import EndlessTokenizer
from finetooth_sft.method import Sft, SftOptions
from finetooth_toolbox.messages.prompts import render_completion
from hypothesis import given
from hypothesis import strategies as st

Contexts = Callable[..., FakeContext]


@parametrize_with_checks("finetooth_sft.plugin")
def test_conforms(check: Any) -> None:
    check()


def chat(*texts: str) -> Conversation:
    roles = ("user", "assistant") * len(texts)
    return Conversation(tuple(Message(role, text) for role, text in zip(roles, texts, strict=False)))


def trained(context: FakeContext, **options: Any) -> list[str]:
    """The text that trains, row by row, as the engine gets it."""
    method = Sft(SftOptions(**options), context)
    method.prepare()
    return [
        context.tokenizer.decode([int(t) for t, m in zip(datum.targets, datum.mask, strict=True) if m])
        for datum in method._data
    ]


def test_targets_are_the_answers(context_of: Contexts) -> None:
    context = context_of(chat("q", "one", "r", "two"), PromptCompletion("p ", "three"))
    assert trained(context) == ["one<|im_end|>two<|im_end|>", "three<|im_end|>"]
    assert trained(context, train_on="last") == ["two<|im_end|>", "three<|im_end|>"]
    everything = trained(context, train_on="all")
    # the first token of a sequence has nothing before it to be predicted from
    assert everything == ["q<|im_end|>one<|im_end|>r<|im_end|>two<|im_end|>", " three<|im_end|>"]


def test_all_of_a_plain_text_trains_and_that_is_said(context_of: Contexts) -> None:
    context = context_of(Text("once upon"), Text("a time"), chat("q", "a"))
    whole = context.tokenizer.encode("once upon")
    method = Sft(SftOptions(), context)
    assert method.prepare().report.notes == (
        "2 rows are plain texts, which train whole, each by itself (method: pretrain trains them in full windows)",
    )
    datum = method._data[0]
    assert [int(t) for t in datum.targets] == [*whole[1:], context.tokenizer.eos_id] and datum.mask.all()
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the text is empty"):
        trained(context_of(Text(" ")))


def test_a_row_without_an_answer_is_named(context_of: Contexts) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: nothing to train on"):
        trained(context_of(chat("q", "a"), chat("only a question")))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: nothing to train on"):
        trained(context_of(PromptCompletion("p", "")))


def test_what_follows_the_last_answer_is_said(context_of: Contexts) -> None:
    report = Sft(SftOptions(), context_of(chat("q", "a"), chat("q", "a", "r"), chat("q", "a", "r"))).prepare().report
    assert report.notes == (
        "2 conversations end with a message that is not the assistant's: the text after the last answer does not train",
    )
    assert Sft(SftOptions(), context_of(chat("q", "a"))).prepare().report.notes == ()


def test_what_a_renderer_remarks_is_said(context_of: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the method's own remarks, not in place of them."""
    context = context_of(chat("q", "a", "r"), chat("q", "a"))
    kind = type(context.renderer)
    inner = kind.render

    def render(renderer: Any, conversation: Conversation, **given: Any) -> Any:
        return replace(inner(renderer, conversation, **given), remarks=("reasoning of earlier turns is left out",))

    monkeypatch.setattr(kind, "render", render)
    notes = Sft(SftOptions(), context).prepare().report.notes
    assert (
        notes[0].startswith("1 conversation ends with") and notes[1] == "2 rows: reasoning of earlier turns is left out"
    )


def parts(first: str, second: str) -> Conversation:
    """An answer of which the first part does not train."""
    ranges = (Weighted(0, len(first), 0.0), Weighted(len(first), len(first + second), 1.0))
    return Conversation((Message("user", "q"), Message("assistant", first + second, weights=ranges)))


def test_a_blank_where_what_trains_begins_is_counted(context_of: Contexts) -> None:
    rows = (parts("think... ", "The"), parts("think...", " The"), parts("think...\n", "The"), parts("a ", "b"))
    report = Sft(SftOptions(), context_of(*rows)).prepare().report
    assert len(report.notes) == 1 and report.notes[0].startswith("2 conversations have a part that ends with a blank")
    whole = Message("assistant", "a b", weights=(Weighted(0, 2, 1.0),))  # the range says what is so anyway
    assert Sft(SftOptions(), context_of(Conversation((Message("user", "q"), whole)))).prepare().report.notes == ()


def test_long_rows_are_counted(context_of: Contexts) -> None:
    context = context_of(chat("q", "a"), chat("q", "a" * 500))
    report = Sft(SftOptions(), context).prepare().report
    assert (report.rows, report.used, dict(report.dropped)) == (2, 1, {"longer than train.max_length": 1})
    assert report.dropped_ids["longer than train.max_length"] == ("rows.jsonl:2",)
    context.train = dataclasses.replace(context.train, excess_length="raise")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: 5\d\d tokens, more than train\.max_length=256"):
        Sft(SftOptions(), context).prepare()


def run(context: FakeContext, state: Any = None, steps: int | None = None) -> tuple[Sft, FakeEngine, list[Any]]:
    method, engine = Sft(SftOptions(), context), FakeEngine(context.tokenizer)
    method.prepare()
    if state is not None:
        method.restore(state)
        engine.weights_version = state["step"]
    return method, engine, list(islice(method.steps(engine), steps))


def test_epochs_batches_and_reports(context_of: Contexts) -> None:
    context = context_of(*(chat(f"q{i}", f"a{i}") for i in range(10)))  # batches of 4, 2 epochs
    method, engine, reports = run(context)
    assert method.prepare().total_steps == len(reports) == 6
    assert [report.rows for report in reports] == [4, 4, 2, 4, 4, 2]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.epoch for report in reports] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    first, second = (sorted(chain.from_iterable(engine.seen[i : i + 3])) for i in (0, 3))
    assert first == second and len(set(first)) == 10  # every row once an epoch
    assert engine.seen[:3] != engine.seen[3:]  # in another order


@pytest.mark.parametrize("after", range(7))
def test_a_restored_method_trains_what_would_have_come_next(context_of: Contexts, after: int) -> None:
    examples = [chat(f"q{i}", f"a{i}") for i in range(10)]
    _, whole, _ = run(context_of(*examples))
    first, begun, _ = run(context_of(*examples), steps=after)
    state = json.loads(json.dumps(first.state()))
    _, rest, reports = run(context_of(*examples), state)
    assert begun.seen + rest.seen == whole.seen
    assert len(reports) == 6 - after


def test_restore_may_come_before_prepare(context_of: Contexts) -> None:
    examples = [chat(f"q{i}", f"a{i}") for i in range(10)]
    _, whole, _ = run(context_of(*examples))
    method = Sft(SftOptions(), context_of(*examples))
    method.restore({"step": 4, "size": 10, "batch_size": 4})
    method.prepare()
    engine = FakeEngine(ByteTokenizer())
    list(method.steps(engine))
    assert engine.seen == whole.seen[4:]


def test_other_data_are_refused_on_restore(context_of: Contexts) -> None:
    method = Sft(SftOptions(), context_of(chat("q", "a")))
    method.restore({"step": 1, "size": 2, "batch_size": 4})
    with pytest.raises(DataError, match="size was 2 when it was saved and is 1 now"):
        method.prepare()


@pytest.mark.parametrize(("bounds", "notes"), [((0.0, 20.0), 0), ((0.2, 4.0), 1), ((10.0, 20.0), 1)])
def test_a_strange_first_loss_is_noted_once(context_of: Contexts, bounds: tuple[float, float], notes: int) -> None:
    context = context_of(*(chat(f"q{i}", f"a{i}") for i in range(10)))
    context.facts = dataclasses.replace(context.facts, first_loss=bounds)
    _, engine, _ = run(context)
    assert 4.0 < engine.losses[0] < 10.0  # random bigrams over 320 ids
    assert len(context.notes) == notes
    if notes:
        assert f"the first training loss is {engine.losses[0]:.2f} nats per token" in context.notes[0]
        context.notes.clear()
        run(context, {"step": 2, "size": 10, "batch_size": 4})
        assert context.notes == []  # a resumed run is past its first step


# --- raw prompts with completions -------------------------------------------------------------------------------------


class Pairs(ByteTokenizer):
    """Two characters a token, so that tokens can straddle; a beginning-of-text token before every text."""

    @property
    def adds_bos(self) -> bool:
        return True

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        places = [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]
        return [1000 + sum(ord(c) << 12 * i for i, c in enumerate(text[a:b])) for a, b in places], places

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return "".join(chr(i - 1000 & 4095) + (chr(i - 1000 >> 12) if i - 1000 >> 12 else "") for i in ids if i >= 1000)


LETTERS = st.text("abc é", max_size=9)


@given(LETTERS, LETTERS.filter(bool))
def test_a_completion_trains_behind_the_tokens_of_its_prompt(prompt: str, completion: str) -> None:
    """Though the two share a token where they are read as one text."""
    tokenizer = Pairs()
    rendered = render_completion(PromptCompletion(prompt, completion), tokenizer)
    asked = (tokenizer.bos_id, *tokenizer.encode(prompt))
    assert rendered.tokens[: len(asked)] == asked and rendered.tokens[-1] == tokenizer.eos_id
    assert tokenizer.decode(rendered.tokens[len(asked) :]) == completion
    assert rendered.weights == (*[0.0] * len(asked), *[1.0] * (len(rendered.tokens) - len(asked)))
    assert rendered.spans == ((0, len(asked)), (len(asked), len(rendered.tokens)))


def test_where_all_of_it_trains_it_is_one_text() -> None:
    rendered = render_completion(PromptCompletion("abc", "def"), tokenizer := Pairs(), train_prompt=True)
    assert rendered.tokens[1:-1] == (*tokenizer.encode("abcdef"),) and rendered.weights == (0.0, *[1.0] * 4)


class Blanks(Pairs):
    """Begins each text with a blank, so that none can be continued."""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return super().encode(f" {text}")


def test_where_no_text_can_be_continued_a_shared_token_does_not_train() -> None:
    rendered = render_completion(PromptCompletion("abc", "def"), Blanks())
    assert rendered.weights == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_no_bos_where_the_tokenizer_adds_none() -> None:
    rendered = render_completion(PromptCompletion("ab", "c"), ByteTokenizer())
    eos = ByteTokenizer().eos_id
    assert rendered == Rendered((97, 98, 99, eos), (0.0, 0.0, 1.0, 1.0), ((0, 2), (2, 4)))


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(DataError, match="no end-of-text token"):
        render_completion(PromptCompletion("a", "b"), EndlessTokenizer())


def test_segments_train_as_they_say(context_of: Contexts) -> None:
    row = Segments((("<|im_start|>a", False), (" b", True), (" c", False), ("<|im_end|>", True)))
    assert trained(context_of(row)) == [" b<|im_end|>"]


def test_custom_trains_what_rows_mark(context_of: Contexts) -> None:
    marked = Conversation(
        (
            Message("user", "ask"),
            Message("assistant", "no"),
            Message("user", "say"),
            Message("assistant", "yes", train=True),
        )
    )
    assert trained(context_of(marked), train_on="custom") == ["yes<|im_end|>"]


def test_a_column_that_may_be_the_answer_is_named(context_of: Contexts) -> None:
    with pytest.raises(DataError, match=r"prompt: prompt, completion: reply\} if reply is the answer, or set another"):
        trained(context_of(Task("p", {"level": 3, "topic": "sums", "reply": "It is four.", "place": "x"})))


@pytest.mark.parametrize(
    ("row", "called"),
    [
        (Pair("p", "a", "b"), "a preference pair"),
        (Labelled("p", "a", True), "a labelled answer"),
        (Stepwise("p", ("a",), (True,)), "an answer in labelled steps"),
        (Task("p"), "a prompt without an answer"),
    ],
)
def test_rows_of_other_methods_are_refused(context_of: Contexts, row: Any, called: str) -> None:
    with pytest.raises(DataError, match=f"the row is {called}, .*set another method"):
        trained(context_of(row))
