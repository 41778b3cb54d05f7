"""Rows with answers to compare, to judge, or to find: preference, labelled, stepwise, task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_formats.sides import transcript
from finetooth_hooks import DataError, Message, Row
from finetooth_hooks.data.examples import Labelled, LeftOut, Pair, Stepwise, Task
from finetooth_kit import draws
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Make = Callable[..., Any]
Rows = Callable[[str], Iterator[Row]]


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str) -> Message:
    return Message("assistant", text)


def plain(*messages: Message) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


# --- preference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": plain(user("q")), "chosen": plain(said("a")), "rejected": plain(said("b"))},
        {"prompt": "q", "chosen": plain(user("q"), said("a")), "rejected": plain(user("q"), said("b"))},
        {"chosen": plain(user("q"), said("a")), "rejected": plain(user("q"), said("b"))},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ],
)
def test_a_pair_is_the_same_however_it_is_written(format_of: Make, values: dict[str, Any]) -> None:
    assert format_of("preference").read(Row("1", values)) == Pair((user("q"),), (said("a"),), (said("b"),))


def test_an_implicit_prompt_leaves_each_answer_something(format_of: Make) -> None:
    same = plain(user("q"), said("a"))
    longer = plain(user("q"), said("a"), user("r"), said("c"))
    pair = format_of("preference").read(Row("1", {"chosen": longer, "rejected": same}))
    assert (pair.prompt, len(pair.chosen), len(pair.rejected)) == ((user("q"),), 3, 1)


TURNS = st.lists(
    st.text(st.characters(codec="ascii", exclude_characters=":"), max_size=20).map(str.strip), min_size=2, max_size=8
)


@given(TURNS)
@settings(deadline=None)
def test_transcripts_are_read_back(turns: list[str]) -> None:
    speakers = ("Human", "Assistant")
    text = "".join(f"\n\n{speakers[i % 2]}: {turn}" for i, turn in enumerate(turns))
    assert transcript(text) == tuple((user, said)[i % 2](turn) for i, turn in enumerate(turns))


@pytest.mark.parametrize("margin", [float("nan"), float("inf"), "half", "nan", True, [1]])
def test_a_margin_is_a_finite_number(format_of: Make, margin: Any) -> None:
    row = Row("f:3", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": margin})
    with pytest.raises(DataError, match="f:3: margin is "):
        format_of("preference").read(row)


def test_margin_and_tools(format_of: Make) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    values = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2, "tools": json.dumps(tools)}
    pair = format_of("preference").read(Row("1", values))
    assert pair.margin == 2.0 and [dict(tool) for tool in pair.tools] == tools


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prompt": "a", "chosen": "b"}, "rejected"),
        ({"prompt": "a", "chosen": 1, "rejected": "c"}, "chosen is a number, neither text nor a list of messages"),
        ({"prompt": "a", "chosen": [{"role": "assistant"}], "rejected": "c"}, r"chosen\[0\]\.content is missing"),
    ],
)
def test_a_bad_pair_is_named(format_of: Make, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"f:7: .*{problem}"):
        format_of("preference").read(Row("f:7", values))


# --- labelled, stepwise, task -----------------------------------------------------------------------------------------


def test_labelled(format_of: Make) -> None:
    format_ = format_of("labelled")
    assert format_.read(Row("1", {"prompt": "q", "completion": "a", "label": False})) == Labelled(
        (user("q"),), (said("a"),), False
    )
    assert format_.read(Row("1", {"prompt": "q", "completion": "a", "label": 3})).label == 3.0
    texts = format_of("labelled", prompt="", completion="text")
    assert texts.read(Row("1", {"text": "good", "label": 0.5})) == Labelled("", "good", 0.5)
    for label, problem in ((None, "label"), ("yes", "label is text"), (float("nan"), "label is nan")):
        with pytest.raises(DataError, match=f"f:2: .*{problem}"):
            format_.read(Row("f:2", {"prompt": "q", "completion": "a", "label": label}))


def test_stepwise(format_of: Make) -> None:
    format_ = format_of("stepwise")
    values = {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}
    assert format_.read(Row("1", values)) == Stepwise((user("q"),), ("a", "b"), (True, False))
    for change, problem in (
        ({"completions": ["a", ""]}, r"completions\[1\] is empty"),
        ({"labels": [True, None]}, r"labels\[1\] is null"),
        ({"labels": None}, "labels"),
    ):
        with pytest.raises(DataError, match=f"f:5: .*{problem}"):
            format_.read(Row("f:5", {**values, **change}))


def test_another_number_of_labels_than_of_steps_is_left_out_or_refused(format_of: Make) -> None:
    values = {"prompt": "q", "completions": ["a", "b"], "labels": [True]}
    assert format_of("stepwise").read(Row("f:5", values)) == LeftOut("another number of labels than of steps")
    with pytest.raises(DataError, match=r"f:5: 2 steps in completions, 1 in labels \(give every step one label\)"):
        format_of("stepwise", unusable="raise").read(Row("f:5", values))


def test_task_keeps_all_other_columns(format_of: Make) -> None:
    row = Row("1", {"prompt": [{"role": "user", "content": "q"}], "answer": "72", "level": 3})
    assert format_of("task").read(row) == Task((user("q"),), {"answer": "72", "level": 3})


TALK = [user("a"), Message("assistant", "b"), user("c"), Message("assistant", "d")]


def test_what_follows_the_first_turn_of_a_conversation_is_kept(format_of: Make) -> None:
    said = ["Hi.", "Hello.", "Count.", "One.", "Thanks."]
    talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    (task,) = format_of("task", prompt="talk", turns="sequential").read(Row("f:2", {"talk": talk, "level": 3}))
    assert [message.content for message in task.prompt] == ["Hi."]
    assert task.columns == {"level": 3, "answer": "Hello.", "remaining_turns": talk[2:4]}


@pytest.mark.parametrize(("turns", "answered"), [("all", [1, 3]), ("first", [1]), ("last", [3])])
def test_a_conversation_becomes_a_prompt_for_each_turn(format_of: Make, turns: str, answered: list[int]) -> None:
    talk = [{"role": message.role, "content": message.content} for message in TALK]
    format_ = format_of("task", prompt="talk", turns=turns, answer="truth")
    read = format_.read(Row("1", {"talk": talk, "level": 3}))
    assert read == [Task(tuple(TALK[:at]), {"level": 3, "truth": TALK[at].content}) for at in answered]
    assert format_.detect({"talk": talk}) is None


@pytest.mark.parametrize(
    "said", [{"content": "b", "reasoning_content": "c"}, {"content": "<think>\nc\n</think>\n\nb"}, {"content": "b"}]
)
def test_reasoning_of_a_reference_answer_has_a_column_of_its_own(format_of: Make, said: dict[str, str]) -> None:
    row = Row("1", {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", **said}]})
    thought = "" if said == {"content": "b"} else "c"
    read = format_of("task", turns="last", reasoning="why").read(row)
    assert read == [Task((user("a"),), {"answer": "b", "why": thought})]
    with pytest.raises(DataError, match=r"a column 'why' already \(name another in data\.format\.reasoning\)"):
        format_of("task", turns="last", reasoning="why").read(Row("1", {**row.values, "why": ""}))


@pytest.mark.parametrize(
    ("talk", "others", "problem"),
    [
        ([{"role": "user", "content": "a"}], {}, "no turn of the assistant follows a question in prompt"),
        ([{"role": "assistant", "content": "a"}], {}, "no turn of the assistant follows a question"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}], {},
            r"prompt\[1\] has reasoning, and a reference answer holds text only \(name a column",
        ),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], {"answer": 1}, "a column 'answer'"),
    ],
)  # fmt: skip
def test_what_is_no_turn_with_an_answer_is_named(
    format_of: Make, talk: list[dict[str, str]], others: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=f"f:5: .*{problem}"):
        format_of("task", turns="all").read(Row("f:5", {"prompt": talk, **others}))


# --- real files, and rows of any shape --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("preference/polite_pref.jsonl", "preference", 794),
        ("preference/oasst_ranked.jsonl", "preference", 597),
        ("preference/hh_harmless_1500.jsonl", "preference", 1496),
        ("multi/oasst_rank_labels.jsonl", "labelled", 344),
        ("process/stepwise_1k.jsonl", "stepwise", 1075),
        ("rl/gsm8k_prompts_500.jsonl", "task", 500),
    ],
)
def test_real_files(format_of: Make, rows_of: Rows, file: str, name: str, count: int) -> None:
    format_ = format_of(name)
    read = [format_.read(row) for row in rows_of(file) if format_.detect(row.values)]
    read = [example for example in read if not isinstance(example, LeftOut)]
    assert len(read) == count
    if name == "preference":
        assert all(pair.prompt and pair.chosen and pair.rejected for pair in read)
        assert all(pair.chosen[-1].role == "assistant" for pair in read)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "text", "type", "from", "value", "train", "weight", "label"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
COLUMNS = st.sampled_from(
    ["messages", "conversations", "prompt", "completion", "completions", "chosen", "rejected", "label", "labels",
     "margin", "text",
     "instruction", "input", "output", "segments", "tools", "system", "question", "answer"]
)  # fmt: skip
NAMES = ("chat", "instruction", "prompt_completion", "text", "segments", "preference", "labelled", "stepwise", "task")


@pytest.mark.parametrize("name", NAMES)
@given(values=st.dictionaries(COLUMNS, ANY, max_size=5))
@settings(deadline=None, max_examples=draws(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_row_gives_an_example_or_a_named_refusal(format_of: Make, name: str, values: dict[str, Any]) -> None:
    try:
        format_of(name).detect(values)
        format_of(name).read(Row("f:9", values))
    except DataError as error:
        assert "f:9" in error.problem


BAD = Path("bad/same_chosen_rejected.jsonl")
REASONS = (
    "chosen and rejected are the same",
    "chosen is empty",
    "chosen and rejected have no prompt in common",
)


def test_pairs_that_teach_nothing_are_left_out_by_reason_or_refused(format_of: Make, rows_of: Rows) -> None:
    first, *others = rows_of(str(BAD))
    assert isinstance(format_of("preference").read(first), Pair)
    for row, reason in zip(others, REASONS, strict=True):
        assert format_of("preference").read(row) == LeftOut(reason)
        with pytest.raises(DataError, match=rf"{row.id}: {reason}"):
            format_of("preference", unusable="raise").read(row)
