"""Folders of runs as they are read: whole, killed, damaged, under way."""

from __future__ import annotations

import json

import pytest
from finetooth_saving.runs.chart import chart, svg, thinned, ticks
from finetooth_saving.runs.recorded import find_run, is_running, read_run, runs_below, size_of
from finetooth_toolbox.files.locks import lock_folder


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "mine"
    made.mkdir()
    (made / "run.json").write_text('{"id": "1"}')
    (made / "recipe.yaml").write_text("model: toy\n")
    plan = {"recipe": {"model": {"name": "toy"}}, "picks": {"method": "acme:sft"}, "total_steps": 3}
    (made / "plan.json").write_text(json.dumps(plan))
    lines = [
        {"event": "start", "step": 0},
        {"event": "evaluation", "step": 0, "name": "loss", "metrics": {"loss": 3.0}, "higher_is_better": False},
        {"event": "step", "step": 1, "loss": 2.0, "seconds": 1.5, "metrics": {"kl": 0.1}},
        {"event": "step", "step": 2, "loss": None, "not_finite": ["loss"], "seconds": 1.5, "metrics": {}},
        {"event": "evaluation", "step": 2, "name": "loss", "metrics": {"loss": 2.5}, "higher_is_better": False},
    ]
    (made / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


def test_a_killed_run_says_what_it_did(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "st')  # the line that was being written
    run = read_run(folder)
    assert (run.status, run.step, run.total_steps, run.seconds) == ("unfinished", 2, 3, 3.0)
    assert (run.model, run.pick("method"), run.problems) == ("toy", "sft", ())
    assert run.series()["loss"] == [(1, 2.0)] and run.series()["eval/loss"] == [(0, 3.0), (2, 2.5)]
    assert run.best == {"eval/loss": 2.5} and run.last == {"loss": 2.0, "eval/loss": 2.5}


def test_a_run_without_metrics_says_what_its_result_holds(folder):
    result = {"status": "done", "steps": 3, "metrics": {"loss": 1.5, "eval/loss": 2.0, "eval/f1": None, "kl": 0.1}}
    (folder / "result.json").write_text(json.dumps(result))
    assert read_run(folder).last == {"loss": 2.0, "eval/loss": 2.5}  # what metrics.jsonl holds stays
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert (run.last, run.step) == ({"loss": 1.5, "eval/loss": 2.0}, 3)


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(folder):
    (folder / "plan.json").write_text("{")
    (folder / "result.json").write_text("[1]")
    (folder / "metrics.jsonl").write_text('nonsense\n{"event": "step", "step": 1, "loss": 1.0}\n\x00\n')
    run = read_run(folder)
    assert [problem.split(":")[0] for problem in run.problems] == ["plan.json", "result.json", "metrics.jsonl"]
    assert run.problems[2].endswith("2 lines that cannot be read")
    assert run.step == 1 and run.total_steps is None and run.model == ""


def test_a_run_is_running_while_its_folder_is_held(folder):
    assert not is_running(folder)
    with lock_folder(folder):
        assert is_running(folder) and read_run(folder).status == "running"
    assert not is_running(folder)


def test_runs_are_found_by_name_and_by_path(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    folder.rename(tmp_path / "runs" / "mine")
    assert [path.name for path in runs_below(tmp_path / "runs")] == ["mine"]
    assert find_run("mine") == find_run("runs/mine")
    assert find_run("other") is None and find_run("x" * 5000) is None and runs_below(tmp_path / "none") == []
    assert size_of(tmp_path / "runs" / "mine")["recipe.yaml"] == len("model: toy\n")


@pytest.mark.parametrize("low, high, wanted", [(0, 10, [0, 5, 10]), (0, 4, [0, 1, 2, 3, 4]), (2, 2, [2])])
def test_ticks_are_round(low, high, wanted):
    assert ticks(low, high) == pytest.approx(wanted)


def test_no_half_steps_below_a_short_run() -> None:
    made = chart("loss", {"train": [(1, 3.0), (2, 2.5), (3, 2.0)]})
    assert made is not None and [text for _, text in made.x_ticks] == ["1", "2", "3"]


def test_a_curve_ends_at_the_edges_and_names_are_text():
    made = chart("<b>", {"</svg><script>": [(0, 0.0), (10, 1.0), (20, float("nan"))], "b": [(0, 1.0)]})
    first, last = made.curves["</svg><script>"]
    assert first == (made.left, made.bottom) and last == (made.right, made.top)
    assert "<script" not in svg(made) and "&lt;script&gt;" in svg(made) and "<b>" not in svg(made)
    assert chart("empty", {"a": [(1, float("inf"))]}) is None


def test_thinning_keeps_every_spike():
    points = [(float(i), 0.0) for i in range(10_000)]
    points[4321] = (4321.0, 9.0)
    kept = thinned(points)
    assert len(kept) <= 600 and (4321.0, 9.0) in kept and kept == sorted(kept)
