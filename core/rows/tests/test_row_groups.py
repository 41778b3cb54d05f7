"""Sequences of one row stand or fall together, and keep what is said about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError, Rendered, Text
from finetooth_hooks.data.preparation import Limit, Preparation
from finetooth_rows.preparing import finish, render_rows
from finetooth_rows.storage.token_rows import TokenRows, pack_about, unpack_about


def pair(prompt: int, chosen: int, rejected: int) -> Rendered:
    """A prompt and two answers of so many tokens."""
    sides = [
        Rendered((7,) * prompt + (i,) * n, (0.0,) * prompt + (1.0,) * n, scalars={"label": 1.0 - i}, part=part)
        for i, (part, n) in enumerate((("chosen", chosen), ("rejected", rejected)))
    ]
    return Rendered(**{**vars(sides[0]), "others": (sides[1],)})


def prepare(limit: Limit | None, *rows: Rendered) -> Preparation:
    made = dict(enumerate(rows))
    items = [(f"r:{i}", Text(str(i))) for i in made]
    portion, tally = render_rows(items, lambda example: made[int(example.text)], limit)
    return finish(TokenRows([portion]), tally, "train", limit)


def test_both_answers_become_data_of_one_group() -> None:
    data = prepare(None, pair(3, 2, 4), pair(1, 1, 1)).data
    assert [datum.id for datum in data] == ["r:0#chosen", "r:0#rejected", "r:1#chosen", "r:1#rejected"]
    assert [datum.group for datum in data] == ["r:0", "r:0", "r:1", "r:1"]
    assert [datum.scalars["label"] for datum in data] == [1.0, 0.0, 1.0, 0.0]
    np.testing.assert_array_equal(data[1].targets, [7, 7, 1, 1, 1, 1])
    np.testing.assert_array_equal(data[1].mask, [False, False, True, True, True, True])


@pytest.mark.parametrize(
    ("excess", "row", "reason"),
    [
        ("drop", pair(3, 2, 9), "longer than train.max_length"),
        ("drop", pair(9, 2, 2), "its prompt alone is longer than train.max_length"),
        ("truncate", pair(9, 2, 2), "its prompt alone is longer than train.max_length"),
        ("truncate", pair(3, 2, 9), "one answer would be truncated and the other not"),
    ],
)
def test_a_row_that_does_not_fit_is_left_out_whole(excess: str, row: Rendered, reason: str) -> None:
    prepared = prepare(Limit(6, excess), row, pair(3, 2, 2))
    assert [datum.id for datum in prepared.data] == ["r:1#chosen", "r:1#rejected"]
    assert (prepared.report.dropped, prepared.report.dropped_ids) == ({reason: 1}, {reason: ("r:0",)})


def test_truncation_keeps_a_row_whose_answers_are_all_cut() -> None:
    prepared = prepare(Limit(6, "truncate"), pair(3, 9, 8))
    assert [len(datum) for datum in prepared.data] == [6, 6]
    assert prepared.report.changed == {"truncated to train.max_length": 1}


def test_answers_are_cut_each_by_itself_where_that_is_asked_for() -> None:
    """Prompts stay whole: a pair whose prompt does not fit is left out, and one cut on one side only is counted."""
    prepared = prepare(Limit(6, "truncate_answers"), pair(3, 2, 9), pair(9, 2, 2), pair(3, 9, 8), pair(3, 2, 2))
    lengths = {datum.id: len(datum) for datum in prepared.data}
    assert lengths == {
        "r:0#chosen": 4, "r:0#rejected": 6, "r:2#chosen": 6, "r:2#rejected": 6, "r:3#chosen": 4, "r:3#rejected": 4,
    }  # fmt: skip
    assert all(not datum.mask[:2].any() and datum.mask[2:].all() for datum in prepared.data)
    assert prepared.report.dropped == {"its prompt alone is longer than train.max_length": 1}
    assert prepared.report.changed == {
        "truncated to train.max_length": 2, "only one answer was truncated, which tells the two apart": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("excess", "problem"), [("raise", "its rejected answer ends at 11"), ("split", "be split")])
def test_raise_and_split_are_refused_with_the_row(excess: str, problem: str) -> None:
    with pytest.raises(DataError, match=f"r:0: .*{problem}"):
        prepare(Limit(6, excess), pair(3, 2, 9))


def test_an_answer_that_trains_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="r:0: nothing to train on in its rejected answer"):
        prepare(Limit(6, "drop"), pair(3, 2, 0))


def test_rows_that_are_left_out_are_counted() -> None:
    prepared = prepare(Limit(6, "drop"), Rendered((), (), left_out="both are the same"), pair(1, 1, 1))
    assert prepared.report.dropped == {"both are the same": 1}
    assert len(prepared.data) == 2


@pytest.mark.parametrize("about", [({}, None), ({"label": 1.0, "margin": -0.25}, None), ({}, "a\nb:ü")])
def test_what_is_said_about_rows_is_packed(about: Any) -> None:
    assert unpack_about(pack_about(*about)) == about


def test_it_outlives_a_file_and_another_process(tmp_path: Path) -> None:
    arrow = pytest.importorskip("finetooth_rows.storage.arrow_rows")
    from finetooth_rows.reading import Reading
    from finetooth_rows.rendering_work import Rendered as Work
    from finetooth_rows.worker_wire import pack_rendered, unpack_rendered

    portion, tally = render_rows([("r:0", Text("0"))], lambda _: pair(2, 3, 1), None)
    header, bodies = pack_rendered(Work(portion, tally, Reading(), (), 1))
    portion = unpack_rendered(header, b"".join(bodies)).portion
    with arrow.ArrowWriter(tmp_path / "rows") as writer:
        writer.write(portion)
    data = TokenRows(arrow.ArrowPortions(tmp_path / "rows", writer.portions, AssertionError))
    assert [(d.group, d.scalars["label"]) for d in data] == [("r:0", 1.0), ("r:0", 0.0)]
