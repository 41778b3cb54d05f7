"""Answers that people ranked, and solutions whose steps they judged, in the shapes in which such data are published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from finetooth_hooks import DataError, Message, Row
from finetooth_hooks.data.examples import Pair, Stepwise
from finetooth_kit import FakeContext

Make = Callable[..., Any]
Rows = Callable[[str], Iterator[Row]]

Q = (Message("user", "q"),)


def said(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


# --- rankings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "pair"),
    [
        ({"responses": ["b", "a", "c"], "scores": [2, 5, 1.5]}, {}, Pair(Q, said("a"), said("c"), 3.5)),
        ({"responses": ["b", "a", "c"], "ranks": [1, 0, 2]}, {}, Pair(Q, said("a"), said("c"), 2.0)),
        ({"responses": ["a", "b", "c"], "scores": [5, 5, 1], "ranks": [9, 9, 1]}, {}, Pair(Q, said("a"), said("c"), 4)),
        ({"responses": ["a", "b"], "scores": [1, 0], "margin": 7}, {}, Pair(Q, said("a"), said("b"), 7.0)),
        (
            {"responses": [[{"role": "assistant", "content": "a"}], {"from": "gpt", "value": "b"}], "scores": [1, 0]},
            {},
            Pair(Q, said("a"), said("b"), 1.0),
        ),
        (
            {"answers": ["a", "b"], "votes": [3, 1]},
            {"responses": "answers", "scores": "votes"},
            Pair(Q, said("a"), said("b"), 2.0),
        ),
    ],
)  # fmt: skip
def test_the_best_and_the_worst_make_a_pair(
    format_of: Make, values: dict[str, Any], options: dict[str, Any], pair: Pair
) -> None:
    format_ = format_of("preference", **options)
    values = {"prompt": "q", **values}
    assert "the best and the worst" in format_.detect(values)
    assert format_.read(Row("1", values)) == pair


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"responses": ["a", "b"], "scores": [1]}, "scores is shorter than two"),
        ({"responses": ["a", "b", "c"], "scores": [1, 2]}, "3 answers in responses, 2 numbers in scores"),
        ({"responses": ["a", "b"], "scores": [1, "2"]}, r"scores\[1\] is text, not a number"),
        ({"responses": ["a", "b"], "ranks": [1, float("nan")]}, r"ranks\[1\] is nan"),
        ({"responses": ["a", "b"], "ranks": [1, 10**400]}, r"ranks\[1\] is a number of more than 300 digits"),
        ({"responses": ["a", 3], "scores": [1, 2]}, r"responses\[1\] is a number, neither text nor a list"),
        ({"responses": ["a", "b"], "labels": [1, 2]}, "no column 'chosen'"),
    ],
)
def test_a_bad_ranking_is_named(format_of: Make, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"f:4: .*{problem}"):
        format_of("preference").read(Row("f:4", {"prompt": "q", **values}))


@pytest.mark.parametrize("column", ["prompt", "question", "instruction", "input", "messages"])
def test_prompts_are_found_by_their_names(format_of: Make, column: str) -> None:
    values = {column: "q", "chosen": {"role": "assistant", "content": "a"}, "rejected": "b", "system": "s"}
    pair = format_of("preference").read(Row("1", values))
    assert pair == Pair((Message("system", "s"), *Q), said("a"), said("b"))


def test_a_prompt_of_a_turn_with_a_tool(format_of: Make) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "tool", "content": "3"}]
    pair = format_of("preference").read(Row("1", {"messages": turns, "chosen": "a", "rejected": "b"}))
    assert [message.role for message in pair.prompt] == ["user", "tool"]


# --- steps ------------------------------------------------------------------------------------------------------------


def rated(*ratings: int | None, chosen: int | None = None, human: str = "") -> dict[str, Any]:
    completions = [{"text": f"c{i}", "rating": rating, "flagged": False} for i, rating in enumerate(ratings)]
    written = {"text": human, "rating": 1, "flagged": False} if human else None
    return {"completions": completions, "human_completion": written, "chosen_completion": chosen}


@pytest.mark.parametrize(
    ("steps", "texts", "labels"),
    [
        ([rated(1, chosen=0), rated(1, chosen=0)], ("c0", "c0"), (True, True)),
        ([rated(1, chosen=0), rated(-1)], ("c0", "c0"), (True, False)),
        ([rated(0, 1, -1, chosen=1), rated(1, chosen=0)], ("c1", "c0"), (True, True)),
        ([rated(0, chosen=0), rated(-1)], ("c0", "c0"), (True, False)),
        ([rated(-1, human="h"), rated(1, chosen=0)], ("h", "c0"), (True, True)),
        ([rated(1, chosen=0), rated(None)], ("c0",), (True,)),
        ([rated(1, chosen=0), rated(None, chosen=0), rated(1, chosen=0)], ("c0",), (True,)),
        ([rated(-1), rated(1, chosen=0)], ("c0",), (False,)),
    ],
)
def test_prm800k(format_of: Make, steps: list[Any], texts: tuple[str, ...], labels: tuple[bool, ...]) -> None:
    values = {"question": {"problem": "q"}, "label": {"steps": steps}}
    format_ = format_of("stepwise")
    assert "PRM800K" in format_.detect(values)
    assert format_.read(Row("1", values)) == Stepwise(Q, texts, labels)


def test_a_neutral_step_is_what_the_recipe_says(format_of: Make, context: FakeContext) -> None:
    values = {"question": {"problem": "q"}, "label": {"steps": [rated(0, 1, chosen=0), rated(1, chosen=0)]}}
    for neutral, label in (("good", True), ("bad", False)):
        assert format_of("stepwise", neutral=neutral).read(Row("f:3", values)).labels == (label, True)
    assert len(context.notes) == 1 and "f:3 has completions that the solution does not continue" in context.notes[0]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"question": {"problem": "q"}, "label": {"steps": [3]}}, r"label\.steps\[0\]\.completions is not a list"),
        ({"question": {"problem": "q"}, "label": {"steps": [rated(2)]}}, r"steps\[0\]\.rating is 2, accepted are"),
        ({"question": {"problem": "q"}, "label": {"steps": [rated(1, chosen=4)]}}, "completion is 4; there are 1"),
        ({"input": "q", "steps": ["a"], "mistake_index": 1}, r"mistake_index is 1, not a step \(0 to 0\)"),
        ({"input": "q", "steps": ["a", ""], "mistake_index": 0}, r"steps\[1\] is empty"),
        ({"input": "q", "steps": ["a"], "mistake_index": True}, "mistake_index is true"),
        (
            {"question": "q", "model_output_steps": ["a"], "model_output_solution_first_error_step": 0},
            r"first_error_step is 0, not a step \(1 to 1\)",
        ),
        ({"input": 3, "steps": ["a"], "mistake_index": None}, "input is a number, neither text nor a list"),
        ({"steps": ["a"], "mistake_index": None}, "no column 'prompt'"),
    ],
)  # fmt: skip
def test_bad_steps_are_named(format_of: Make, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"f:5: .*{problem}"):
        format_of("stepwise").read(Row("f:5", values))


def test_no_mistake_is_all_right(format_of: Make) -> None:
    values = {"input": "q", "steps": ["a", "b"], "mistake_index": None}
    assert format_of("stepwise").read(Row("1", values)) == Stepwise(Q, ("a", "b"), (True, True))


def test_what_follows_the_first_mistake_is_left_out(format_of: Make) -> None:
    """One shape counts steps from 0, the other from 1."""
    wanted = Stepwise(Q, ("a", "b"), (True, False))
    for values in (
        {"input": "q", "steps": ["a", "b", "c"], "mistake_index": 1},
        {"question": "q", "model_output_steps": ["a", "b", "c"], "model_output_solution_first_error_step": 2},
    ):
        assert format_of("stepwise").read(Row("1", values)) == wanted


def test_published_shapes_give_what_was_derived_from_them(format_of: Make, rows_of: Rows) -> None:
    """`stepwise_1k` was made of the two others by other code."""
    format_ = format_of("stepwise")
    derived = [format_.read(row) for row in rows_of("process/stepwise_1k.jsonl")]
    files = ("process/bigbench_mistake_800.jsonl", "process/mr_gsm8k_errors.jsonl")
    assert [format_.read(row) for file in files for row in rows_of(file)] == derived
    assert {label for example in derived for label in example.labels} == {True, False}
