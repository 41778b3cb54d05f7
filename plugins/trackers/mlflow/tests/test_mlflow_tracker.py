"""MLflow, with the real client on a database in the folder, and a server that is not there."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

pytest.importorskip("mlflow", reason="mlflow is not installed")
pytest.importorskip("alembic", reason="alembic is not installed")

from finetooth_hooks import Sample
from finetooth_kit.run_fixtures import NotingContext
from finetooth_mlflow.tracker import MlflowOptions, build
from mlflow import MlflowClient


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Shared by the tests: to make one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def options(database):
    return MlflowOptions(uri=database)


def points(database, run, name):
    found = MlflowClient(tracking_uri=database).get_metric_history(run.state["run"], name)
    return [(metric.step, metric.value) for metric in found]


@pytest.mark.slow
def test_steps_evaluations_and_the_recipe_are_in_the_database(database, options, run, report, evaluation, outcome):
    told = NotingContext()
    run.plan.recipe = {"model": "toy", "train": {"seed": 3}, "token": "hf_abcdefgh"}
    tracker = build(options, told)
    tracker.start(run)
    tracker.evaluated(run, evaluation)
    for step in (1, 2):
        tracker.step(run, report(step, loss=1.0 / step, metrics={"kl": 0.5}))
    tracker.end(run, outcome)
    assert points(database, run, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert points(database, run, "eval/exact_match") == [(0, 0.25)]
    there = MlflowClient(tracking_uri=database).get_run(run.state["run"])
    assert (there.info.status, there.info.run_name) == ("FINISHED", "mine")
    assert there.data.params == {"model": "toy", "train.seed": "3", "token": "***"}
    assert told.notes == []


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_run_and_no_step_is_there_twice(database, options, run, report, outcome):
    tracker = build(options, NotingContext())
    tracker.start(run)
    kept = json.loads(json.dumps(run.state))
    for step in (1, 2, 3):
        tracker.step(run, report(step))  # killed after step 3; the checkpoint is of step 1
    run.state, run.step = kept, 1
    again = build(options, NotingContext())
    again.resume(run, [report(1)])
    for step in (2, 3, 4):
        again.step(run, report(step))
    again.end(run, outcome)
    assert run.state == kept
    assert [step for step, _ in points(database, run, "train/loss")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_answers_are_a_file_every_few_steps(database, run, report, outcome, monkeypatch, tmp_path):
    """In the shape of the service's tables, next to the database and not where the run was started."""
    monkeypatch.chdir(tmp_path)
    told, sample = NotingContext(), Sample("row:1", "2 + 2 =", "", "4", 1.0)
    tracker = build(MlflowOptions(uri=database, experiment="answers", samples_every=2), told)
    tracker.start(run)
    for step in (1, 2, 3):
        tracker.step(run, report(step, samples=(sample,)))
    tracker.end(run, outcome)
    client = MlflowClient(tracking_uri=database)
    (file,) = client.list_artifacts(run.state["run"], "train/samples")
    assert file.path == "train/samples/step_00000002.json" and told.notes == []
    table = json.loads(Path(client.download_artifacts(run.state["run"], file.path)).read_text())
    assert table == {"columns": ["id", "prompt", "answer", "reward"], "data": [["row:1", "2 + 2 =", "4", 1.0]]}
    assert not (tmp_path / "mlruns").exists()
    experiment = client.get_experiment_by_name("answers")
    assert experiment.artifact_location.endswith("/mlartifacts")


@pytest.mark.slow
def test_a_run_that_is_gone_there_begins_anew(options, run, report):
    told = NotingContext()
    run.state["run"] = "0" * 32
    tracker = build(options, told)
    tracker.resume(run, [])
    tracker.step(run, report(1))
    assert run.state["run"] != "0" * 32
    assert "is gone; it begins" in told.notes[0] and len(told.notes) == 1


def test_a_server_that_is_away_is_told_of_once(run, report, outcome, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2222")
    with socket.socket() as held:  # nobody listens at the port
        held.bind(("127.0.0.1", 0))
        told = NotingContext()
        tracker = build(MlflowOptions(uri=f"http://127.0.0.1:{held.getsockname()[1]}"), told)
        tracker.start(run)
        tracker.step(run, report(1))
        tracker.end(run, outcome)
    (note,) = told.notes
    assert note.startswith("tracker mlflow cannot be opened: ") and "\n" not in note and "hunter2222" not in note
    assert note.endswith("training continues without it, and the tracker jsonl keeps every step in the run folder")
    assert run.state == {}
