"""Rows that are of their format and teach nothing: left out by reason, or an error if the recipe says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from finetooth_hooks import DataError, Row
from finetooth_hooks.data.examples import LeftOut, media_of

Make = Callable[..., Any]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ANSWER = turn("assistant", "d")
PRM = {"question": {"problem": "q"}}
ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    ("preference", {"prompt": "q", "chosen": " \n", "rejected": "a"}, "chosen is empty"),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": [turn("assistant", "")]}, "rejected is empty"),
    ("preference", {"prompt": "", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
    (
        "preference",
        {"prompt": "q", "chosen": "a", "rejected": [turn("assistant", "b"), turn("user", "c")]},
        "rejected does not end with the assistant's message",
    ),
    ("preference", {"chosen": "b", "rejected": "c"}, "chosen and rejected have no prompt in common"),
    (
        "preference",
        {"chosen": [turn("user", "a"), turn("assistant", "b")], "rejected": [turn("user", "c"), ANSWER]},
        "chosen and rejected have no prompt in common",
    ),
    (
        "preference",
        {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 2.0},
        "chosen and rejected are rated the same",
    ),
    (
        "preference",
        {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
        "rejected is rated higher than chosen",
    ),
    ("preference", {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, "no answer is better than another"),
    ("preference", {"prompt": "q", "responses": ["a", "a"], "scores": [2, 1]}, "chosen and rejected are the same"),
    ("labelled", {"prompt": "q", "completion": "", "label": False}, "completion is empty"),
    ("labelled", {"prompt": " ", "completion": "a", "label": False}, "the prompt is empty"),
    ("stepwise", {"prompt": "q", "completions": [], "labels": []}, "it has no step"),
    ("stepwise", {"prompt": "", "completions": ["a"], "labels": [True]}, "the prompt is empty"),
    ("stepwise", {"input": "q", "steps": [], "mistake_index": None}, "it has no step"),
    ("stepwise", {**PRM, "label": {"steps": []}}, "no step has a rating"),
    (
        "stepwise",
        {**PRM, "label": {"steps": [{"completions": [{"text": "a", "rating": None}]}]}},
        "no step has a rating",
    ),
    ("text", {"text": ""}, "text is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "reason"), ROWS)
def test_left_out_or_refused(format_of: Make, name: str, values: dict[str, Any], reason: str) -> None:
    row = Row("f:3", values)
    assert format_of(name).read(row) == LeftOut(reason)
    with pytest.raises(DataError, match=f"f:3: {reason}"):
        format_of(name, unusable="raise").read(row)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}),
        ("labelled", {"prompt": "q", "completion": "a", "label": True}),
    ],
)
def test_images_without_a_place_are_refused(format_of: Make, name: str, values: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"f:1: images has 1 images, and the messages place 0"):
        format_of(name).read(Row("f:1", {**values, "images": [b"png"]}))


@pytest.mark.parametrize(("name", "side"), [("preference", "chosen"), ("labelled", "completion")])
def test_images_stand_where_the_row_places_them(format_of: Make, name: str, side: str) -> None:
    """Behind the prompt's, in an answer of its own; and from the first on, in an answer that repeats the prompt."""
    values: dict[str, Any] = {"prompt": "<image>Which?", side: "This: <image>", "images": [b"one", b"two"]}
    values |= {"rejected": "None."} if name == "preference" else {"label": True}
    read = format_of(name).read(Row("f:1", values))
    assert [one.read() for one in media_of(read)] == [b"one", b"two"]
    whole = [{"role": "user", "content": "<image>Which?"}, {"role": "assistant", "content": "This: <image>"}]
    again = format_of(name).read(Row("f:1", {**values, side: whole}))
    assert again == read if name == "preference" else [one.read() for one in media_of(again)][-2:] == [b"one", b"two"]
    with pytest.raises(DataError, match="images has only 1"):
        format_of(name).read(Row("f:1", {**values, "images": [b"one"]}))
