"""metrics.jsonl: strict JSON, nothing lost, appended to."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from finetooth_hooks import NoOptions, UserError
from finetooth_jsonl.tracker import build


def lines(run):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.fixture
def tracker():
    return build(NoOptions(), None)


def test_every_report_is_a_line_with_all_its_fields(tracker, run, report, evaluation, outcome):
    tracker.start(run)
    tracker.evaluated(run, evaluation)
    tracker.step(run, report(1, metrics={"entropy": 0.1}))
    tracker.end(run, outcome)
    start, evaluated, step, end = lines(run)
    assert start == {"event": "start", "step": 0, "total_steps": 60, "run": "mine"}
    assert step == {"event": "step", **asdict(report(1, metrics={"entropy": 0.1}))}
    assert evaluated["samples"][0]["prompt"] == "What is Søren to Ana?"
    assert (evaluated["event"], evaluated["metrics"]["exact_match"]) == ("evaluation", 0.25)
    assert (end["status"], end["artifact"], end["best"]) == ("done", "artifact", {"eval/exact_match": 0.75})


def test_a_line_is_on_disk_as_soon_as_it_is_reported(tracker, run, report):
    tracker.start(run)
    tracker.step(run, report(1))
    assert len(lines(run)) == 2  # the tracker is still open


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), np.float32("nan")])
def test_what_is_not_finite_is_null_and_named(tracker, run, report, value):
    tracker.start(run)
    tracker.step(run, report(1, loss=value, metrics={"kl": value, "entropy": np.float32(0.5)}))
    step = lines(run)[1]
    assert step["loss"] is None
    assert step["metrics"] == {"kl": None, "entropy": 0.5}
    assert step["not_finite"] == ["loss", "metrics.kl"]


def test_a_resumed_run_appends(tracker, run, report, outcome):
    tracker.start(run)
    tracker.step(run, report(1))
    tracker.end(run, outcome)
    run.step = 1
    again = build(NoOptions(), None)
    again.start(run)
    again.step(run, report(2))
    assert [(line["event"], line["step"]) for line in lines(run)] == [
        ("start", 0), ("step", 1), ("end", 0), ("start", 1), ("step", 2),
    ]  # fmt: skip


def test_half_a_line_of_a_killed_run_spoils_no_other(tracker, run, report):
    (run.folder / "metrics.jsonl").write_text('{"event": "step", "st')
    tracker.start(run)
    tracker.step(run, report(2))
    torn, start, step = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert torn == '{"event": "step", "st'
    assert json.loads(start)["event"] == "start"
    assert json.loads(step)["step"] == 2


def test_an_unwritable_file_is_one_line_for_the_user(tracker, run):
    (run.folder / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written"):
        tracker.start(run)


def test_end_without_start_is_quiet(tracker, run, outcome):
    tracker.end(run, outcome)
    assert not (run.folder / "metrics.jsonl").exists()
