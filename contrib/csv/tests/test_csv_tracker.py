"""The tables, read back by the csv module."""

from __future__ import annotations

import csv

import pytest
from finetooth_contrib_csv.tracker import STEP_COLUMNS, CsvTracker
from finetooth_hooks import UserError


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_step_and_metric(run, report, evaluation, outcome):
    tracker = CsvTracker()
    tracker.start(run)
    tracker.evaluated(run, evaluation)
    tracker.step(run, report(1, loss=0.1, metrics={"extra": 1.0}))
    assert len(rows(run.folder / "metrics.csv")) == 1  # on disk at once
    tracker.step(run, report(2, loss=float("nan")))
    tracker.end(run, outcome)
    steps = rows(run.folder / "metrics.csv")
    assert tuple(steps[0]) == STEP_COLUMNS
    assert [(row["step"], row["loss"]) for row in steps] == [("1", "0.1"), ("2", "nan")]
    assert float(steps[0]["learning_rate"]) == 1e-3
    assert rows(run.folder / "evaluations.csv") == [
        {"step": "0", "evaluator": "exact_match", "metric": "exact_match", "value": "0.25", "rows": "300"},
        {"step": "0", "evaluator": "exact_match", "metric": "unfinished", "value": "0.0", "rows": "300"},
    ]


def test_a_resumed_run_appends_under_one_header(run, report, outcome):
    for step in (1, 2):
        tracker = CsvTracker()
        tracker.start(run)
        tracker.step(run, report(step))
        tracker.end(run, outcome)
    assert [row["step"] for row in rows(run.folder / "metrics.csv")] == ["1", "2"]


def test_a_killed_run_goes_on_from_its_history(run, report, evaluation, outcome):
    """Killed after step 7 in the middle of a row, resumed from 5; and rolled back to 5 once more while it is open."""
    first = CsvTracker()
    first.start(run)
    for step in (1, 2, 3, 7):
        first.step(run, report(step, loss=9.0))
    with (run.folder / "metrics.csv").open("a") as file:
        file.write("8,0.4,1.")
    history = [evaluation, *(report(step) for step in range(1, 6))]
    second = CsvTracker()
    run.step = 5
    second.resume(run, history)
    second.step(run, report(6))
    second.resume(run, history)
    for step in (6, 7):
        second.step(run, report(step, loss=2.0))
    second.end(run, outcome)
    steps = [(row["step"], row["loss"]) for row in rows(run.folder / "metrics.csv")]
    assert steps == [(str(step), "1.5") for step in range(1, 6)] + [("6", "2.0"), ("7", "2.0")]
    assert [row["metric"] for row in rows(run.folder / "evaluations.csv")] == ["exact_match", "unfinished"]
    assert sorted(path.name for path in run.folder.iterdir()) == ["evaluations.csv", "metrics.csv"]


def test_a_run_goes_on_in_an_empty_folder(run, report, outcome):
    tracker = CsvTracker()
    tracker.resume(run, [report(1)])
    tracker.end(run, outcome)
    assert [row["step"] for row in rows(run.folder / "metrics.csv")] == ["1"]
    assert rows(run.folder / "evaluations.csv") == []


def test_an_unwritable_table_is_one_line_for_the_user(run):
    (run.folder / "metrics.csv").mkdir()
    with pytest.raises(UserError, match=r"metrics\.csv cannot be written"):
        CsvTracker().start(run)
