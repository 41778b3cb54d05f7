"""Event files, read back by TensorBoard's own reader."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from finetooth_hooks import Sample, UserError
from finetooth_tensorboard.tracker import TensorboardOptions, TensorboardTracker
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.summary.writer.record_writer import RecordWriter


def scalars_of(events):
    """What TensorBoard's server shows, by tag."""
    events.Reload()
    return {
        tag: [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]
    }


def read(folder):
    return scalars_of(EventAccumulator(str(folder)))


def test_tensorboard_reads_back_what_was_reported(run, report, evaluation, outcome):
    tracker = TensorboardTracker(TensorboardOptions())
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


def test_a_full_disk_is_one_line_with_the_setting(run, report):
    tracker = TensorboardTracker(TensorboardOptions())
    tracker.start(run)
    tracker._writer = RecordWriter(open("/dev/full", "wb"))  # noqa: PTH123, SIM115 - the writer closes it
    with pytest.raises(UserError, match=r"^trackers\.tensorboard\.folder: .*tensorboard cannot be written: No space"):
        tracker.step(run, report(1))


def test_answers_are_a_table_every_few_steps(run, report):
    """As TensorBoard's own text page makes HTML of it; a resumed run has those of its history again."""
    nasty = Sample("row:1", "2 | 2\n<b>*x*</b> [l](http://e) `w`", "", "4", -0.5)
    tracker = TensorboardTracker(TensorboardOptions(samples_every=2, samples=1))
    reports = [report(step, samples=(nasty, nasty)) for step in (1, 2, 3, 4)]
    tracker.resume(run, reports[:3])
    tracker.step(run, reports[3])
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    texts = events.Tensors("train/samples")
    assert [event.step for event in texts] == [2, 4]
    assert events.SummaryMetadata("train/samples").plugin_data.plugin_name == "text"
    html = markdown_to_safe_html(texts[0].tensor_proto.string_val[0])
    cells = ["row:1", "2 | 2<br>&lt;b&gt;*x*&lt;/b&gt; [l](http://e) `w`", "4", "-0.5"]
    assert re.findall("<td>(.*)</td>", html) == cells


def test_a_resumed_run_replaces_what_came_after_its_step(run, report, outcome):
    for first, loss in ((1, 1.0), (3, 2.0)):
        run.step = first - 1
        tracker = TensorboardTracker(TensorboardOptions())
        tracker.start(run)
        for step in range(first, first + 4):
            tracker.step(run, report(step, loss=loss))
        tracker.end(run, outcome)
    assert read(run.folder / "tensorboard")["train/loss"] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2)]


def steps(tracker, run, report, numbers, loss=1.0):
    for step in numbers:
        run.step = step
        tracker.step(run, report(step, loss=loss))


def test_a_killed_run_goes_on_from_its_history(run, report, evaluation):
    """Killed after step 7 with steps that never reached the disk, resumed from 5: each step once, with its time."""
    first = TensorboardTracker(TensorboardOptions())
    first.start(run)
    steps(first, run, report, range(1, 4))
    first.evaluated(run, replace(evaluation, step=3, metrics={"beyond": 1.0}))
    first._writer.flush()  # what comes next is lost with the process
    history = [evaluation, *(report(step, loss=step / 2) for step in range(1, 6))]
    run.step = 5
    second = TensorboardTracker(TensorboardOptions())
    second.resume(run, history)
    steps(second, run, report, (6, 7), loss=9.0)
    second.end(run, None)
    scalars = read(run.folder / "tensorboard")
    assert scalars["train/loss"] == [(1, 0.5), (2, 1), (3, 1.5), (4, 2), (5, 2.5), (6, 9), (7, 9)]
    assert scalars["eval/exact_match"] == [(0, 0.25)] and not scalars.get("eval/beyond")
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    times = [event.wall_time for event in events.Tensors("train/loss")][:5]
    assert [b - a for a, b in pairwise(times)] == pytest.approx([2.0] * 4, abs=0.01)


def test_a_reader_that_was_watching_lets_go_of_what_is_gone(run, report):
    """In the middle of a run that rolls back: the tracker is open, and so is TensorBoard."""
    tracker = TensorboardTracker(TensorboardOptions())
    tracker.start(run)
    steps(tracker, run, report, range(1, 7))
    tracker._writer.flush()
    watching = EventAccumulator(str(run.folder / "tensorboard"))
    assert len(scalars_of(watching)["train/loss"]) == 6
    run.step = 4
    tracker.resume(run, [report(step, loss=1.0) for step in range(1, 5)])
    steps(tracker, run, report, (5, 6), loss=2.0)
    tracker._writer.flush()
    wanted = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]
    assert scalars_of(watching)["train/loss"] == wanted
    assert read(run.folder / "tensorboard")["train/loss"] == wanted


def test_a_machine_whose_clock_is_behind_goes_on_in_a_later_file(run, report, monkeypatch):
    """Eleven times within a second, then a day earlier: each file sorts after the one before it."""
    folder, written = run.folder / "tensorboard", []
    day_before = time.time() - 86_400
    for loss in range(1, 13):
        if loss == 12:
            monkeypatch.setattr(time, "time", lambda: day_before)
        tracker = TensorboardTracker(TensorboardOptions())
        tracker.start(run)
        tracker.step(run, report(1, loss=float(loss)))
        tracker.end(run, None)
        written += [file.name for file in folder.iterdir() if file.name not in written]
    assert len(written) == 12 and written == sorted(written)
    assert read(folder)["train/loss"] == [(1, 12)]


def test_a_run_goes_on_in_an_empty_folder(run, report, tmp_path):
    run.step = 2
    tracker = TensorboardTracker(TensorboardOptions(folder=str(tmp_path / "logs")))
    tracker.resume(run, [report(1), report(2)])
    tracker.end(run, None)
    assert read(tmp_path / "logs" / "mine")["train/loss"] == [(1, 1.5), (2, 1.5)]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"trackers\.tensorboard\.folder"):
        TensorboardTracker(TensorboardOptions(folder=str(tmp_path / "file"))).resume(run, [])


def test_runs_share_a_folder_given(run, report, outcome, tmp_path):
    tracker = TensorboardTracker(TensorboardOptions(folder=str(tmp_path / "logs")))
    tracker.start(run)
    tracker.step(run, report(1))
    tracker.end(run, outcome)
    assert read(tmp_path / "logs" / "mine")["train/loss"] == [(1, 1.5)]


def test_an_unwritable_folder_is_one_line_for_the_user(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"trackers\.tensorboard\.folder"):
        TensorboardTracker(TensorboardOptions(folder=str(tmp_path / "file"))).start(run)


def test_it_needs_neither_torch_nor_tensorflow():
    code = "import sys, finetooth_tensorboard.tracker; print('torch' in sys.modules, 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
