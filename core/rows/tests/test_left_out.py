"""Many rows left out: told from a tenth on, asked about from a half on."""

from __future__ import annotations

import pytest
from finetooth_hooks import DataError, DataReport
from finetooth_rows.choices.left_out import left_out_rows, lines, refuse_most
from finetooth_rows.tally import IN_A_PIECE, LENGTH_SETTINGS, TOO_LONG

REPEATS = "the same as an earlier row"
SETTINGS = {TOO_LONG: LENGTH_SETTINGS, REPEATS: "data.deduplicate"}


def report(rows: int, split: str = "train", **dropped: int) -> DataReport:
    reasons = {{"long": TOO_LONG, "repeats": REPEATS, "empty": "no text", "pieces": IN_A_PIECE}[name]: count
               for name, count in dropped.items()}  # fmt: skip
    return DataReport(split, rows, rows, dropped=reasons, settings=SETTINGS)


def test_more_than_a_tenth_is_a_line_with_reasons_and_settings() -> None:
    assert lines([report(100, long=10), report(0)]) == []
    (line,) = lines([report(100, long=10), report(2000, "eval", long=1400, empty=30)])
    assert line == (
        "data.eval: 72 % of the rows are left out, 1,430 of 2,000: 1,400 longer than train.max_length "
        "(train.max_length, train.excess_length); 30 no text"
    )


def test_more_than_half_of_the_training_rows_is_refused() -> None:
    refuse_most([report(100, long=50), report(100, "eval", long=90)])
    with pytest.raises(DataError, match=r"data\.train: 51 % of the rows are left out, 51 of 100: 51 longer") as error:
        refuse_most([report(100, long=51)])
    assert error.value.action == (
        "raise train.max_length, or set train.excess_length to truncate, truncate_turns or split; if that is "
        "meant, say so with --accept-dropped or data.accept_dropped=true"
    )


def test_what_a_setting_asks_to_leave_out_is_said_and_not_asked_about() -> None:
    assert "90 the same as an earlier row (data.deduplicate)" in lines([report(100, repeats=90)])[0]
    refuse_most([report(100, repeats=90)])


def test_pieces_of_rows_are_no_rows() -> None:
    assert left_out_rows(report(10, pieces=500, empty=1)).count == 1


def test_of_rows_that_give_several_examples_these_are_counted() -> None:
    several = DataReport("train", 10, 60, dropped={"no text": 40}, examples=100)
    assert left_out_rows(several).share == 0.4
