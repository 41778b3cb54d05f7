"""What a run measures, and when: also one that goes on from a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import (
    Evaluation,
    RecipeError,
    StopRun,
)
from finetooth_saving.artifact import verify_folder
from finetooth_saving.run_folder import outcome_of


def test_a_run_to_the_end_evaluates_before_and_after_and_keeps_the_artifact(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    listener = kit.Listener()
    loop = kit.make(tmp_path, kit.Method(), listener)
    outcome = loop.run()
    assert (outcome.status, outcome.exit_code, outcome.steps) == ("done", 0, 4)
    assert [e.step for e in loop.record.evaluations] == [0, 4]
    assert outcome.best == {"eval/score": 1.0}
    assert loop.job.request.updates.schedule.seen == [{"eval/score": 0.0}, {"eval/score": 1.0}]
    assert listener.told == [
        "ft_run_start", "ft_evaluated", *["ft_step"] * 4, "ft_evaluated", "ft_checkpoint_saved", "ft_run_end"
    ]  # fmt: skip
    assert verify_folder(tmp_path / "artifact")["step"] == 4
    assert kit.result(tmp_path)["metrics"] == {"loss": 0.25, "eval/score": 1.0}


def test_a_run_that_ends_sooner_than_was_planned_is_evaluated_where_it_ends(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    """How many steps rows give is not always known before: no step was the last one when it was told."""
    loop = kit.make(tmp_path, kit.Method(total=3))
    outcome = loop.run()
    assert (outcome.status, outcome.steps) == ("done", 3)
    assert [evaluation.step for evaluation in outcome.evaluations] == [0, 3]


def test_an_outcome_has_every_report_and_its_file_has_none(kit: SimpleNamespace, tmp_path: Path) -> None:
    outcome = kit.make(tmp_path, kit.Method()).run()
    assert [(report.step, report.loss) for report in outcome.history] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert [(evaluation.step, evaluation.name) for evaluation in outcome.evaluations] == [(0, "score"), (4, "score")]
    assert not {"history", "evaluations"} & kit.result(tmp_path).keys()
    told = outcome_of(tmp_path)
    assert told is not None
    assert (told.status, told.steps, told.history, told.evaluations) == ("done", 4, (), ())


def test_evaluations_and_checkpoints_come_when_they_are_due_and_not_twice_at_the_end(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    loop = kit.make(tmp_path, kit.Method(), kit.Listener(), before=False, every=2, save=3)
    loop.run()
    assert [e.step for e in loop.record.evaluations] == [2, 4]
    assert loop.record.best == {"eval/score": 2.0}
    state = json.loads((tmp_path / "checkpoints" / "step-3" / "state.json").read_text())
    assert (state["step"], state["method"], state["plugins"]) == (3, {"done": 3}, {"listener": {"seen": 3}})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-3", "step-4"]


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_run_that_goes_on_measures_what_the_whole_one_measures(
    kit: SimpleNamespace, tmp_path: Path, step: int, every: int
) -> None:
    """Every state says when it was measured last, also the first one after it went on; nothing is measured twice."""
    whole = kit.make(tmp_path / "whole", kit.Method(), every=every, save=1)
    whole.run()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for later in range(step + 1, 5):
        shutil.rmtree(tmp_path / f"cut/checkpoints/step-{later}")
    loop = kit.resumed(tmp_path / "cut", step, every=every, save=1)
    assert loop.run().steps == 4
    assert kit.states(tmp_path / "cut") == kit.states(tmp_path / "whole")
    at = {2: (0, 2, 2, 4), 3: (0, 0, 3, 4)}[every]
    assert [kit.states(tmp_path / "cut")[f"step-{number}"]["evaluated_at"] for number in (1, 2, 3, 4)] == list(at)
    assert loop.record.evaluations == whole.record.evaluations


@pytest.mark.parametrize(
    ("every", "steps"), [(2, [0, 2, 4]), ("3 steps", [0, 3, 4]), ("0.5 epochs", [0, 2, 4]), ("epoch", [0, 4])]
)
def test_it_is_said_in_words_when_to_evaluate(
    kit: SimpleNamespace, tmp_path: Path, every: Any, steps: list[int]
) -> None:
    loop = kit.make(tmp_path, kit.Method(), every=every)  # four steps an epoch
    loop.run()
    assert [e.step for e in loop.record.evaluations] == steps


@pytest.mark.parametrize("every", [2, "0.5 epochs"])
@pytest.mark.parametrize("hook", ["ft_step", "ft_evaluated"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    kit: SimpleNamespace, tmp_path: Path, hook: str, every: Any
) -> None:
    class Floor(kit.Listener):
        def call(self, told: str, **arguments: Any) -> None:
            if told == hook and arguments["run"].step == 2:
                raise StopRun("below the floor", 3)

    two = (kit.Score(), kit.Score())
    whole, stopped = (kit.make(tmp_path / name, kit.Method(), *listeners, every=every) for name, listeners in
                      (("whole", ()), ("stopped", (Floor(),))))  # fmt: skip
    whole.job.evaluators = stopped.job.evaluators = two
    whole.run()
    assert (stopped.run().exit_code, stopped.progress.step) == (3, 2)
    loop = kit.resumed(tmp_path / "stopped", 2, every=every)
    loop.job.evaluators = two
    outcome = loop.run()
    assert (outcome.status, outcome.exit_code, outcome.steps) == ("done", 0, 4)
    assert loop.record.evaluations == whole.record.evaluations
    assert [e.step for e in loop.record.evaluations] == [0, 0, 2, 2, 4, 4]


def test_a_run_that_was_interrupted_while_it_measured_goes_on_with_that(kit: SimpleNamespace, tmp_path: Path) -> None:
    loop = kit.make(tmp_path, kit.Method(at={2: lambda: os.kill(os.getpid(), signal.SIGINT)}), every=2)
    assert loop.run().status == "interrupted"
    assert [e.step for e in loop.record.evaluations] == [0]
    loop = kit.resumed(tmp_path, 2, every=2)
    loop.run()
    assert [e.step for e in loop.record.evaluations] == [0, 2, 4]


def test_a_metric_that_is_never_measured_fails_before_the_first_step_or_is_said_at_the_end(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    method = kit.Method()
    (tmp_path / "a").mkdir()
    with pytest.raises(RecipeError, match=r"no evaluator gives eval/scor; there are: eval/score \(did you mean"):
        kit.make(tmp_path / "a", method, save=2, best="eval/scor").run()
    assert (method.done, kit.result(tmp_path / "a")["exit_code"]) == (0, 2)
    (tmp_path / "c").mkdir()
    waiting = kit.make(tmp_path / "c", method)
    waiting.job.context.awaited["schedule.metric"] = "eval/scor"
    with pytest.raises(RecipeError, match=r"schedule\.metric: no evaluator gives eval/scor; there are: eval/score"):
        waiting.run()
    outcome = kit.make(tmp_path / "b", kit.Method(), save=2, best="los").run()  # nobody knows what steps report
    assert (outcome.status, outcome.exit_code, outcome.artifact_step) == ("done", 1, 4)
    assert "no checkpoint has the metric los" in outcome.reason


def test_an_interrupt_during_an_evaluation_is_seen_after_it(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any, engine: Any, step: int) -> Evaluation:
        os.kill(os.getpid(), signal.SIGINT)
        return Evaluation("score", step, {"score": 0.0})

    monkeypatch.setattr(kit.Score, "evaluate", interrupted)
    outcome = kit.make(tmp_path, kit.Method()).run()
    assert (outcome.status, outcome.exit_code, outcome.steps) == ("interrupted", 130, 0)
