"""Trackio, with the real package and its database in a folder of the test."""

from __future__ import annotations

import json

import pytest

trackio = pytest.importorskip("trackio", reason="trackio is not installed; it asks for pillow below 13")

from finetooth_hooks import Sample  # noqa: E402
from finetooth_kit.run_fixtures import NotingContext  # noqa: E402
from finetooth_trackio.tracker import TrackioOptions, build  # noqa: E402
from trackio import sqlite_storage  # noqa: E402


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")


def logs(project, name):
    return sqlite_storage.SQLiteStorage.get_logs(project, name)


def test_steps_and_evaluations_are_in_the_database(run, report, evaluation, outcome, capsys):
    told = NotingContext()
    tracker = build(TrackioOptions(project="first"), told)
    tracker.start(run)
    tracker.evaluated(run, evaluation)
    for step in (1, 2):
        tracker.step(run, report(step, loss=1.0 / step))
    tracker.end(run, outcome)
    found = logs("first", "mine")
    assert [row["step"] for row in found] == [0, 1, 2]
    assert found[0]["eval/exact_match"] == 0.25 and found[2]["train/loss"] == 0.5
    assert told.notes == [] and capsys.readouterr().out == ""


def test_answers_are_a_table_every_few_steps(run, report, outcome):
    told, sample = NotingContext(), Sample("row:1", "2 + 2 =", "", "4", 1.0)
    tracker = build(TrackioOptions(project="third", samples_every=2), told)
    tracker.start(run)
    for step in (1, 2, 3):
        tracker.step(run, report(step, samples=(sample,)))
    tracker.end(run, outcome)
    tables = [(row["step"], row["train/samples"]) for row in logs("third", "mine") if "train/samples" in row]
    assert [step for step, _ in tables] == [2] and told.notes == []
    assert tables[0][1]["_value"] == [{"id": "row:1", "prompt": "2 + 2 =", "answer": "4", "reward": 1.0}]


def test_a_resumed_run_goes_on_in_the_same_run(run, report, outcome):
    tracker = build(TrackioOptions(project="second"), NotingContext())
    tracker.start(run)
    tracker.step(run, report(1))
    tracker.end(run, outcome)
    run.state, run.step = json.loads(json.dumps(run.state)), 1
    again = build(TrackioOptions(project="second"), NotingContext())
    again.resume(run, [report(1)])
    again.step(run, report(2))
    again.end(run, outcome)
    assert [row["step"] for row in logs("second", "mine")] == [1, 2]


def test_what_fails_is_told_of_once(run, report, outcome, monkeypatch):
    def refuse(**_):
        raise ConnectionError("the Space sleeps")

    monkeypatch.setattr(trackio, "init", refuse)
    told = NotingContext()
    tracker = build(TrackioOptions(space="me/mine"), told)
    tracker.start(run)
    tracker.step(run, report(1))
    tracker.end(run, outcome)
    (note,) = told.notes
    assert note.startswith("tracker trackio cannot be opened: ConnectionError: the Space sleeps; training continues")
