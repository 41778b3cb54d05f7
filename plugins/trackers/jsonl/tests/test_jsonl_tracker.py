"""metrics.jsonl: strict JSON, nothing lost, appended to."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from finetooth_hooks import Sample, UserError
from finetooth_jsonl.tracker import JsonlTracker


def lines(run):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.fixture
def tracker():
    return JsonlTracker()


def test_every_report_is_a_line_with_all_its_fields(tracker, run, report, evaluation, outcome):
    tracker.start(run)
    tracker.evaluated(run, evaluation)
    sampled = report(1, metrics={"entropy": 0.1}, samples=(Sample("row:1", "2 + 2 =", "", "4", 1.0),))
    tracker.step(run, sampled)
    tracker.end(run, outcome)
    start, evaluated, step, end = lines(run)
    assert start == {"event": "start", "step": 0, "total_steps": 60, "run": "mine"}
    assert "rollouts" not in step  # no tracker is given any
    assert {**step, "rollouts": []} == {"event": "step", **json.loads(json.dumps(asdict(sampled)))}
    assert step["samples"][0]["answer"] == "4"
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


def test_a_killed_run_goes_on_from_its_history(tracker, run, report, evaluation):
    """Killed after step 7 in the middle of a line, resumed from 5."""
    tracker.start(run)
    for step in range(1, 8):
        tracker.step(run, report(step, loss=9.0))
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    history = [evaluation, *(report(step) for step in range(1, 6))]
    run.step = 5
    again = JsonlTracker()
    again.resume(run, history)
    again.step(run, report(6))
    found = lines(run)
    wanted = [("start", 0), ("evaluation", 0), *(("step", step) for step in range(1, 6)), ("resume", 5), ("step", 6)]
    assert [(line["event"], line["step"]) for line in found] == wanted
    empty = ("samples", "rollouts")
    assert found[2] == {"event": "step", **{key: value for key, value in asdict(report(1)).items() if key not in empty}}
    assert found[1]["samples"][0]["prompt"] == "What is Søren to Ana?"
    assert [path.name for path in run.folder.iterdir()] == ["metrics.jsonl"]


def test_a_run_rolls_back_while_its_file_is_open(tracker, run, report, outcome):
    tracker.start(run)
    for step in range(1, 5):
        tracker.step(run, report(step))
    run.step = 2
    tracker.resume(run, [report(1), report(2)])
    tracker.step(run, report(3, loss=7.0))
    tracker.end(run, outcome)
    assert [(line["event"], line["step"], line.get("loss")) for line in lines(run)] == [
        ("start", 0, None), ("step", 1, 1.5), ("step", 2, 1.5), ("resume", 2, None), ("step", 3, 7.0), ("end", 2, None),
    ]  # fmt: skip


def test_a_run_goes_on_in_an_empty_folder(tracker, run, report):
    run.step = 2
    tracker.resume(run, [report(1), report(2, loss=float("nan"))])
    assert [(line["event"], line["step"]) for line in lines(run)] == [
        ("start", 0), ("step", 1), ("step", 2), ("resume", 2),
    ]  # fmt: skip
    assert lines(run)[2]["not_finite"] == ["loss"]


def test_a_tracker_without_a_history_appends(tracker, run, report, outcome):
    tracker.start(run)
    tracker.step(run, report(1))
    tracker.end(run, outcome)
    run.step = 1
    again = JsonlTracker()
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
