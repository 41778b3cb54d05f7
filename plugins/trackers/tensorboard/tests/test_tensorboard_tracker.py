"""Event files, read back by TensorBoard's own reader."""

from __future__ import annotations

import subprocess
import sys

import pytest
from finetooth_hooks import UserError
from finetooth_tensorboard.tracker import TensorboardOptions, build
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_back_what_was_reported(run, report, evaluation, outcome):
    tracker = build(TensorboardOptions(), None)
    tracker.start(run)
    tracker.evaluated(run, evaluation)
    for step in (1, 2, 3):
        tracker.step(run, report(step, loss=1 / step, metrics={"loss/kl": 0.25}, mfu=0.4, flops_per_second=2e11))
    tracker.end(run, outcome)
    scalars = read(run.folder / "tensorboard")
    assert scalars["train/loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert scalars["train/learning_rate"][0] == (1, pytest.approx(1e-3))
    assert scalars["train/mfu"][2] == (3, pytest.approx(0.4))
    assert scalars["train/flops_per_second"][0] == (1, pytest.approx(2e11))
    assert scalars["train/loss/kl"] == [(1, 0.25), (2, 0.25), (3, 0.25)]
    assert scalars["eval/exact_match"] == [(0, 0.25)]
    assert scalars["baseline/majority_answer"] == [(0, 0.125)]


def test_a_resumed_run_replaces_what_came_after_its_step(run, report, outcome):
    for first, loss in ((1, 1.0), (3, 2.0)):
        run.step = first - 1
        tracker = build(TensorboardOptions(), None)
        tracker.start(run)
        for step in range(first, first + 4):
            tracker.step(run, report(step, loss=loss))
        tracker.end(run, outcome)
    assert read(run.folder / "tensorboard")["train/loss"] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2)]


def test_runs_share_a_folder_given(run, report, outcome, tmp_path):
    tracker = build(TensorboardOptions(folder=str(tmp_path / "logs")), None)
    tracker.start(run)
    tracker.step(run, report(1))
    tracker.end(run, outcome)
    assert read(tmp_path / "logs" / "mine")["train/loss"] == [(1, 1.5)]


def test_an_unwritable_folder_is_one_line_for_the_user(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"trackers\.tensorboard\.folder"):
        build(TensorboardOptions(folder=str(tmp_path / "file")), None).start(run)


def test_it_needs_neither_torch_nor_tensorflow():
    code = "import sys, finetooth_tensorboard.tracker; print('torch' in sys.modules, 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
