"""What rows can teach, how long rows are, sizes."""

from __future__ import annotations

import pytest
from finetooth_hooks import Method, UserError
from finetooth_hooks.data.examples import Labelled, PromptCompletion, Text
from finetooth_hooks.reports import DataReport
from finetooth_init.command import _bytes
from finetooth_init.goals import GOALS, goals_of
from finetooth_init.proposal import Wishes, _described, _length


def test_rows_of_one_kind_teach_one_kind_of_thing() -> None:
    assert [goal.name for goal in goals_of([Text("a"), Text("b")], "rows")] == ["pretrain"]
    assert {goal.name for goals in GOALS.values() for goal in goals} == {
        "sft",
        "dpo",
        "rm",
        "kto",
        "prm",
        "pretrain",
        "grpo",
    }


def test_kinds_that_no_method_takes_together_are_named() -> None:
    with pytest.raises(UserError, match=r"rows.jsonl holds rows of several kinds, Text and PromptCompletion"):
        goals_of([Text("a"), PromptCompletion("a", "b")], "rows.jsonl")
    with pytest.raises(UserError, match=r"rows.jsonl: no rows: no method learns from such rows"):
        goals_of([], "rows.jsonl")
    assert Labelled in GOALS


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((3, 60), 64), (tuple(range(1, 101)), 128), ((10,) * 99 + (900,), 64), ((10,) * 90 + (900,) * 10, 960)],
)
def test_the_length_holds_98_of_100_rows_and_is_whole_64s(lengths: tuple[int, ...], expected: int) -> None:
    assert _length(DataReport("train", len(lengths), len(lengths), lengths=lengths, longest=max(lengths))) == expected


def test_lengths_are_rounded_and_the_longest_row_is_held_all_the_same() -> None:
    """Rows of 66 tokens are reported as of 64, which is within the 5 % of such reports."""
    assert _length(DataReport("train", 8, 8, lengths=(64,) * 33, longest=66)) == 128
    assert _length(DataReport("train", 99, 99, lengths=(64,) * 99 + (900,), longest=910)) == 128


@pytest.mark.parametrize(
    ("rows", "extent", "passes"),
    [(4, "auto", 15), (64, "auto", 15), (320, "auto", 3), (5000, "auto", 1), (4, "1", 1), (5000, "3", 3)],
)
def test_few_rows_are_passed_over_more_often_unless_it_is_said_how_long(rows: int, extent: str, passes: int) -> None:
    """Four rows once are four steps, after which a model answered as before; 16 rows go into a step."""
    entry = Method(name="sft", build="x:build", summary="s", learns_from="l", rows="r")
    report = DataReport("train", rows, rows, lengths=(9,) * rows, longest=9)
    recipe, reasons = _described(GOALS[PromptCompletion][0], entry, Wishes("rows.jsonl", "m", extent=extent), report)
    assert recipe["train"]["epochs"] == passes
    assert any("few steps teach little" in reason for reason in reasons["train"]) is (extent == "auto" and passes > 1)


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("1.5 GiB", 3 * 2**29), ("512mb", 512 * 10**6), ("", 0)]
)
def test_sizes(text: str, size: int) -> None:
    assert _bytes(text) == size
