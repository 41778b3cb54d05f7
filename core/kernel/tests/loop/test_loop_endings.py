"""What is kept and told however a run ends: a stop, an interrupt, a failure."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import (
    EngineError,
    Evaluation,
    FinetoothError,
    PluginError,
    StepReport,
    StopRun,
)
from finetooth_saving.artifact import verify_folder
from finetooth_saving.found_checkpoints import read
from finetooth_saving.run_state import Resumed


def test_the_time_of_earlier_processes_counts(kit: SimpleNamespace, tmp_path: Path) -> None:
    kit.make(tmp_path, kit.Method(), save=2).run()
    found = read(tmp_path / "checkpoints" / "step-2")
    loop = kit.make(tmp_path, kit.Method())
    loop.go_on(replace(found, state=replace(found.state, seconds=1000.0)), Resumed(2))
    assert 1000.0 <= loop.run().seconds < 1900.0
    assert kit.result(tmp_path)["seconds"] >= 1000.0


def test_a_run_that_was_stopped_at_its_very_end_can_be_ended_again(kit: SimpleNamespace, tmp_path: Path) -> None:
    outcome = kit.make(tmp_path, kit.Method(), kit.Listener(raises={"ft_run_end": StopRun("below the floor", 3)})).run()
    assert (outcome.status, outcome.exit_code) == ("stopped", 3)
    listener = kit.Listener()
    loop = kit.resumed(tmp_path, 4, listener)
    outcome = loop.run()
    assert (outcome.status, outcome.exit_code, outcome.steps) == ("done", 0, 4)
    assert listener.told[-1] == "ft_run_end" and [e.step for e in loop.record.evaluations] == [0, 4]


def test_stop_run_keeps_what_was_trained_and_sets_the_exit_code(kit: SimpleNamespace, tmp_path: Path) -> None:
    loop = kit.make(tmp_path, kit.Method(), kit.Listener(raises={"ft_step": StopRun("enough", 7)}))
    outcome = loop.run()
    assert (outcome.status, outcome.exit_code, outcome.reason, outcome.steps) == ("stopped", 7, "enough", 1)
    assert (tmp_path / "artifact" / "weights.txt").read_text() == "trained"
    assert kit.result(tmp_path)["exit_code"] == 7


def test_a_stop_at_the_end_still_sets_the_exit_code(kit: SimpleNamespace, tmp_path: Path) -> None:
    outcome = kit.make(tmp_path, kit.Method(), kit.Listener(raises={"ft_run_end": StopRun("below the score", 4)})).run()
    assert (outcome.status, outcome.exit_code, outcome.reason) == ("stopped", 4, "below the score")
    assert kit.result(tmp_path)["exit_code"] == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_lets_the_step_finish_and_says_what_is_kept(
    kit: SimpleNamespace, tmp_path: Path, number: int, code: int
) -> None:
    loop = kit.make(tmp_path, kit.Method(at={2: lambda: os.kill(os.getpid(), number)}))
    outcome = loop.run()
    assert (outcome.status, outcome.exit_code, outcome.steps) == ("interrupted", code, 2)
    assert (tmp_path / "artifact" / "weights.txt").exists()
    assert verify_folder(tmp_path / "checkpoints" / "step-2")["step"] == 2
    assert f"the trained weights are in {tmp_path / 'artifact'}; resume with: ft resume" in loop.said[-1]


def test_a_second_interrupt_leaves_at_once(kit: SimpleNamespace, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    outcome = kit.make(tmp_path, kit.Method(at={2: twice})).run()
    assert (outcome.status, outcome.exit_code, outcome.steps) == ("interrupted", 130, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json"]


def test_a_second_sigterm_says_nothing_new(kit: SimpleNamespace, tmp_path: Path) -> None:
    """As from `timeout`, which sends it to a launcher and to its group."""

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    outcome = kit.make(tmp_path, kit.Method(at={2: twice})).run()
    assert (outcome.status, outcome.exit_code, outcome.steps) == ("interrupted", 143, 2)
    assert (tmp_path / "artifact" / "weights.txt").exists()


def test_who_calls_exit_in_a_step_ends_no_run_as_if_it_were_done(kit: SimpleNamespace, tmp_path: Path) -> None:
    def leave() -> None:
        raise SystemExit(0)

    with pytest.raises(FinetoothError, match="SystemExit: 0") as caught:
        kit.make(tmp_path, kit.Method(at={2: leave})).run()
    found = kit.result(tmp_path)
    assert (found["status"], found["exit_code"], caught.value.exit_code, found["steps"]) == ("failed", 1, 1, 1)


def test_a_failed_step_keeps_the_steps_before_it(kit: SimpleNamespace, tmp_path: Path) -> None:
    loop = kit.make(tmp_path, kit.Method(at={3: EngineError("the loss is not finite")}))
    with pytest.raises(EngineError, match="not finite"):
        loop.run()
    written = kit.result(tmp_path)
    assert (written["status"], written["exit_code"], written["steps"]) == ("failed", 1, 2)
    assert verify_folder(tmp_path / "artifact")["step"] == 2


@pytest.mark.parametrize("error", [EngineError("no memory"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failed_step_leaves_a_checkpoint_of_the_last_whole_one(
    kit: SimpleNamespace, tmp_path: Path, error: Exception
) -> None:
    """And says so once, also where something else's disk is full."""

    class Moving(kit.Method):
        """Its cursor moves before the step it stands for is done, as that of batches does."""

        def steps(self, engine: Any) -> Iterator[StepReport]:
            for step in range(1, 4):
                self.done = step
                engine.accumulated += 1
                if step == 3:
                    raise error
                engine.zero_grad()
                yield StepReport(step, step / 4, 1.0, 8, 4, 2, 1e-3, 0.5)

    loop = kit.make(tmp_path, Moving(), kit.Listener())
    with pytest.raises(Exception, match=r"no memory|No space left"):
        loop.run()
    folder = tmp_path / "checkpoints" / "step-2"
    assert json.loads((folder / "state.json").read_text())["method"] == {"done": 2}
    assert verify_folder(folder)["step"] == 2
    assert (folder / "engine" / "state.txt").read_text() == "state with 0 gradients"  # the step is taken again
    assert loop.said == [f"the state after step 2, the last whole one, is in {folder}"]


@pytest.mark.parametrize("error", [PluginError("acme", "evaluate() returned nan"), KeyError("f1"), SystemExit(0)])
def test_an_evaluation_that_fails_loses_no_step(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(self: Any, engine: Any, step: int) -> Any:
        if step == 2:
            raise error
        return Evaluation("mine", step, {"score": 0.5})

    monkeypatch.setattr(kit.Score, "evaluate", fail)
    loop = kit.make(tmp_path, kit.Method(), every=1)
    with pytest.raises((FinetoothError, KeyError)):
        loop.run()
    folder = tmp_path / "checkpoints" / "step-2"
    assert verify_folder(folder)["step"] == 2 and str(folder) in loop.said[-1]
    monkeypatch.undo()
    again = kit.resumed(tmp_path, 2, every=1).run()
    assert [one.step for one in again.evaluations] == [0, 1, 2, 3, 4] and again.status == "done"


@pytest.mark.parametrize("save", [0, 10])
def test_a_step_that_moved_weights_and_failed_is_not_saved_as_the_one_before(
    kit: SimpleNamespace, tmp_path: Path, save: int
) -> None:
    def move() -> None:
        loop.engine.weights_version = 3
        raise KeyError("of the method, after its update")

    loop = kit.make(tmp_path, kit.Method(at={3: move}), save=save)
    with pytest.raises(KeyError):
        loop.run()
    assert not list(tmp_path.glob("checkpoints/step-*"))


@pytest.mark.parametrize(("error", "saved"), [(EngineError("rank 1 failed: no memory"), 1), (KeyError("f1"), 0)])
def test_what_fails_at_one_of_several_ranks_saves_nothing(
    kit: SimpleNamespace, tmp_path: Path, error: Exception, saved: int
) -> None:
    """The others do not save with it; an engine's error is raised at all of them."""

    def fail() -> None:
        raise error

    loop = kit.make(tmp_path, kit.Method(at={3: fail}))
    loop.job.request.place.collective = object()
    with pytest.raises(type(error)):
        loop.run()
    assert len(list(tmp_path.glob("checkpoints/step-*"))) == saved


def test_a_checkpoint_that_is_there_is_not_written_again(kit: SimpleNamespace, tmp_path: Path) -> None:
    loop = kit.make(tmp_path, kit.Method(at={3: EngineError("no memory")}), save=2)
    with pytest.raises(EngineError, match="no memory"):
        loop.run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]
    assert "the last whole one, is in" in loop.said[-1]


def test_a_state_that_cannot_be_saved_does_not_hide_the_failure(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: Any
) -> None:
    def torn(self: Any, path: Path) -> None:
        raise EngineError("half updated")

    for name in ("save", "export"):
        monkeypatch.setattr(kit.Engine, name, torn)
        loop = kit.make(tmp_path / name, kit.Method(at={3: EngineError("no memory")}))
        with pytest.raises(EngineError, match="no memory"):
            loop.run()
        assert any("could not be saved: half updated" in line for line in loop.said)


def test_the_best_weights_are_never_kept_as_those_of_the_last_step(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 4 did not count as it was kept; the engine holds step 2 by the time that the artifact cannot be written."""

    class Once(kit.Listener):
        def call(self, hook: str, **arguments: Any) -> Any:
            if hook == "ft_promote" and arguments["candidate"].step == 4 and "ft_promote" not in self.told:
                self.told.append(hook)
                return "it repeats itself"
            return None

    def full(self: Any, path: Path) -> None:
        raise EngineError("export ran out of memory")

    def save(self: Any, path: Path) -> None:
        path.mkdir()
        loaded = getattr(self, "loaded", None)
        (path / "state.txt").write_text("trained here" if loaded is None else f"weights of {loaded.parent.name}")

    monkeypatch.setattr(kit.Engine, "export", full)
    monkeypatch.setattr(kit.Engine, "save", save)
    loop = kit.make(tmp_path, kit.Method(), Once(), every=2, save=2, best="eval/score")
    with pytest.raises(EngineError, match="export ran out of memory"):
        loop.run()
    assert loop.engine.loaded == tmp_path / "checkpoints" / "step-2" / "engine"
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-2"]
    assert (tmp_path / "checkpoints" / "quarantine" / "step-4" / "engine" / "state.txt").read_text() == "trained here"
    said = loop.said[-1]
    assert said == (
        f"the selected checkpoint is not lost: it is in {tmp_path / 'checkpoints' / 'step-2'}; resume with: ft resume "
        f"{tmp_path}"
    )


def test_a_stop_never_hides_a_failure_or_an_interrupt(kit: SimpleNamespace, tmp_path: Path) -> None:
    gate = kit.Listener(raises={"ft_checkpoint_saved": StopRun("fine", 0), "ft_run_end": StopRun("fine", 0)})
    with pytest.raises(EngineError):
        kit.make(tmp_path / "a", kit.Method(at={3: EngineError("not finite")}), gate).run()
    assert (kit.result(tmp_path / "a")["status"], kit.result(tmp_path / "a")["exit_code"]) == ("failed", 1)
    stopping = kit.Method(at={2: lambda: os.kill(os.getpid(), signal.SIGINT)})
    outcome = kit.make(tmp_path / "b", stopping, gate).run()
    assert (outcome.status, outcome.exit_code) == ("interrupted", 130)
