"""Weights & Biases, with the real client and no network: what it wrote is read back from its own file."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace

import pytest

wandb = pytest.importorskip("wandb", reason="wandb is not installed")

from finetooth_hooks import Sample  # noqa: E402
from finetooth_kit.run_fixtures import NotingContext  # noqa: E402
from finetooth_wandb.tracker import WandbOptions, build  # noqa: E402
from wandb.proto import wandb_internal_pb2  # noqa: E402


@pytest.fixture
def told():
    return NotingContext()


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No account, no settings of this machine's user, no proxy."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


HEADER, BLOCK = 7, 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def chunks(content):
    """What a LevelDB log holds (github.com/google/leveldb, doc/log_format.md), behind the header of wandb's files."""
    place, begun = HEADER, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # the rest of a block is too short for a record
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        data = content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            yield begun + data
        begun = begun + data if kind in (FIRST, MIDDLE) else b""


def records(folder):
    """Every record of every run below a folder, in the order of the files."""
    wandb.teardown()  # its service has written everything only then
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in chunks(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            yield record


def history(folder):
    rows = []
    for record in records(folder):
        if record.HasField("history"):
            items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            rows.append((items["_step"], items))
    return rows


def ids(folder):
    return [record.run.run_id for record in records(folder) if record.HasField("run")]


@pytest.mark.slow
def test_steps_evaluations_and_the_recipe_are_in_its_file(told, run, report, evaluation, outcome):
    run.plan.recipe = {"model": "toy", "data": {"url": "s3://me:hunter22@host/x", "api_key": "k-1234567"}}
    tracker = build(WandbOptions(mode="offline", project="p"), told)
    tracker.start(run)
    tracker.evaluated(run, evaluation)
    for step in (1, 2):
        tracker.step(run, report(step, loss=1.0 / step, metrics={"kl": 0.5}))
    tracker.end(run, outcome)
    found = history(run.folder)
    assert [step for step, _ in found] == [0, 1, 2]
    assert found[0][1]["eval/exact_match"] == 0.25 and found[0][1]["baseline/majority_answer"] == 0.125
    assert (found[2][1]["train/loss"], found[2][1]["train/kl"]) == (0.5, 0.5)
    begun = next(record.run for record in records(run.folder) if record.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["model"] == "toy"
    assert config["data.url"] == "s3://me:***@host/x" and config["data.api_key"] == "***"
    everything = b"".join(path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
    assert b"hunter22" not in everything and b"k-1234567" not in everything
    assert told.notes == []


@pytest.mark.slow
def test_answers_are_a_table_every_few_steps(told, run, report, outcome):
    """Next to the numbers of the same step; without the option there is none."""
    samples = tuple(Sample(f"row:{i}", f"{i} + 2 =", "", "4", float(i == 2)) for i in range(3))
    for options in ({"samples_every": 2, "samples": 2}, {}):
        tracker = build(WandbOptions(mode="offline", **options), told)
        tracker.start(run)
        for step in (1, 2, 3):
            tracker.step(run, report(step, samples=samples))
        tracker.end(run, outcome)
        run.state = {}
    path = "train/samples/path"
    written = [(step, items[path]) for step, items in history(run.folder) if path in items]
    assert [step for step, _ in written] == [2] and told.notes == []
    assert sum("train/loss" in items for _, items in history(run.folder)) == 6
    (file,) = run.folder.glob(f"wandb/offline-run-*/files/{written[0][1]}")
    table = json.loads(file.read_text())
    assert table["columns"] == ["id", "prompt", "answer", "reward"]
    assert table["data"] == [["row:0", "0 + 2 =", "4", 0.0], ["row:1", "1 + 2 =", "4", 0.0]]


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_run(told, run, report, outcome):
    tracker = build(WandbOptions(mode="offline"), told)
    tracker.start(run)
    tracker.step(run, report(1))
    tracker.end(run, outcome)
    kept = json.loads(json.dumps(run.state))  # what a checkpoint keeps
    run.state, run.step = kept, 1
    again = build(WandbOptions(mode="offline"), told)
    again.resume(run, [report(1)])
    again.step(run, report(2))
    again.end(run, outcome)
    assert len(ids(run.folder)) == 2 and len(set(ids(run.folder))) == 1
    assert [step for step, _ in history(run.folder)] == [1, 2]


@pytest.mark.slow
def test_a_named_run_gets_the_model(told, run, outcome):
    """The run has the id that is given, and its file asks for every file of the artifact to be stored."""
    artifact = run.folder / "artifact"
    artifact.mkdir()
    (artifact / "adapter_model.safetensors").write_bytes(b"weights")
    tracker = build(WandbOptions(mode="offline", run_id="begun1", log_model=True), told)
    tracker.start(run)
    tracker.end(run, replace(outcome, artifact=artifact, artifact_step=40))
    stored = [record.artifact for record in records(run.folder) if record.HasField("artifact")]
    assert ids(run.folder) == ["begun1"] and told.notes == []
    assert [(of.name, of.type, json.loads(of.metadata)) for of in stored] == [("model-begun1", "model", {"step": 40})]
    assert [entry.path for entry in stored[0].manifest.contents] == ["adapter_model.safetensors"]


def test_without_a_login_the_run_is_written_here_and_it_is_said_once(told, run, report, outcome, capfd):
    tracker = build(WandbOptions(mode="online"), told)
    tracker.start(run)
    for step in (1, 2):
        tracker.step(run, report(step))
    tracker.end(run, outcome)
    assert [step for step, _ in history(run.folder)] == [1, 2]
    (note,) = told.notes
    assert "nobody is logged in" in note and "wandb sync" in note
    assert "deprecated" not in "".join(capfd.readouterr())


def test_a_client_that_fails_is_told_of_once_without_secrets(told, run, report, outcome, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789secret")

    def refuse(**_):
        raise RuntimeError("no place for 0123456789secret\nnor time")

    monkeypatch.setattr(wandb, "init", refuse)
    tracker = build(WandbOptions(mode="offline"), told)
    tracker.start(run)
    tracker.step(run, report(1))
    tracker.end(run, outcome)
    (note,) = told.notes
    assert note.startswith(
        "tracker wandb cannot be opened: RuntimeError: no place for *** nor time; training continues"
    )
