"""What was trained: of which step it is, and what happens where it cannot be written."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import (
    EngineError,
    Evaluation,
    UserError,
)
from finetooth_hooks.bases import EvaluatorBase
from finetooth_saving import room
from finetooth_saving.artifact import verify_folder


def test_the_best_checkpoint_is_the_artifact_and_its_step_and_value_are_said(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    loop = kit.make(tmp_path, kit.Method(), every=1, save=1, best="eval/score")
    outcome = loop.run()  # scores 0, 1, 2, 0, 1
    assert (outcome.steps, outcome.artifact_step, outcome.exit_code) == (4, 2, 0)
    assert loop.engine.loaded == tmp_path / "checkpoints/step-2/engine"
    assert kit.result(tmp_path)["artifact_step"] == verify_folder(tmp_path / "artifact")["step"] == 2
    says = "the artifact is of step 2, not of the last one, 4: the best checkpoint by eval/score, 2"
    assert loop.said == [f"checkpoint.select_on: {says}"]


def test_it_is_said_if_no_checkpoint_is_as_good_as_the_beginning(kit: SimpleNamespace, tmp_path: Path) -> None:
    class Worse(EvaluatorBase):
        def evaluate(self, engine: Any, step: int) -> Evaluation:
            return Evaluation("loss", step, {"loss": 2.0 + step}, higher_is_better=False)

    loop = kit.make(tmp_path, kit.Method(), every=1, save=2, best="eval/loss")
    loop.job.evaluators = (Worse(),)  # type: ignore[misc]
    assert loop.run().artifact_step == 2
    assert loop.said[-1].startswith("eval/loss was better before the first step, 2: no checkpoint is as good")


def test_a_damaged_folder_is_refused_by_name(kit: SimpleNamespace, tmp_path: Path) -> None:
    kit.make(tmp_path, kit.Method()).run()
    (tmp_path / "artifact" / "weights.txt").write_text("untrain")
    with pytest.raises(UserError, match=r"weights\.txt differs"):
        verify_folder(tmp_path / "artifact")
    (tmp_path / "artifact" / "weights.txt").unlink()
    with pytest.raises(UserError, match=r"weights\.txt is missing"):
        verify_folder(tmp_path / "artifact")


def test_a_file_beside_those_of_an_artifact_does_no_harm(kit: SimpleNamespace, tmp_path: Path) -> None:
    kit.make(tmp_path, kit.Method()).run()
    (tmp_path / "artifact" / "README.md").write_text("a model card")
    assert verify_folder(tmp_path / "artifact")["step"] == 4


@pytest.mark.parametrize("error", [KeyError("lm_head"), ConnectionRefusedError(111, "Connection refused")], ids=str)
def test_what_cannot_be_exported_is_no_matter_of_room(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(self: Any, path: Path) -> None:
        raise error

    monkeypatch.setattr(kit.Engine, "export", broken)
    with pytest.raises(EngineError, match=f"artifact cannot be written: {type(error).__name__}: ") as caught:
        kit.make(tmp_path, kit.Method()).run()
    assert "a bug; --debug shows where" in str(caught.value) and "room" not in str(caught.value)


def test_a_full_disk_names_the_folder_and_leaves_nothing_half_written(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, path: Path) -> None:
        (path / "weights.txt").write_text("tra")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kit.Engine, "export", full)
    with pytest.raises(EngineError, match=r"artifact cannot be written: No space left on device"):
        kit.make(tmp_path, kit.Method()).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "result.json"]
    assert kit.result(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("save", [0, 2])
@pytest.mark.parametrize("full", [("export",), ("save",), ("export", "save")], ids=str)
def test_a_run_whose_disk_is_full_at_its_end_waits_for_room(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: int, full: tuple[str, ...]
) -> None:
    """What fails is the artifact, the last state, or both; an older checkpoint may be there."""
    monkeypatch.setattr(room, "PAUSE", 0.0)
    left = dict.fromkeys(full, 3)
    loop = kit.make(tmp_path, kit.Method(), save=save, wait_for_room=60.0)

    def until_there_is_room(name: str) -> Any:
        write = getattr(kit.Engine, name)

        def writing(self: Any, path: Path) -> None:
            if left[name] and loop.progress.step == 4:
                left[name] -= 1
                raise OSError(28, "No space left on device")
            write(self, path)

        return writing

    for name in full:
        monkeypatch.setattr(kit.Engine, name, until_there_is_room(name))
    if "save" in full and save:  # the checkpoint that was due ended the run; what was trained is kept all the same
        with pytest.raises(EngineError, match="step-4 cannot be written"):
            loop.run()
    else:
        assert loop.run().status == "done"
    assert verify_folder(tmp_path / "artifact")["step"] == 4
    assert ("export" in full) == any("waits for room" in line for line in loop.said)


@pytest.mark.parametrize("ends", ["time", "user"])
def test_the_wait_for_room_ends(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    loop = kit.make(tmp_path, kit.Method(), wait_for_room=0.0 if ends == "time" else 1e9)

    def full(self: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    def ask_to_stop(seconds: float) -> None:
        loop.interrupt.signal = 2

    monkeypatch.setattr(kit.Engine, "export", full)
    monkeypatch.setattr(room, "time", SimpleNamespace(sleep=ask_to_stop, monotonic=time.monotonic))
    with pytest.raises(EngineError, match="No space left on device"):
        loop.run()


@pytest.mark.parametrize("save", [0, 2])
def test_a_run_whose_artifact_cannot_be_written_keeps_its_last_state(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: int
) -> None:
    def full(self: Any, path: Path) -> None:
        raise EngineError("export ran out of memory")

    monkeypatch.setattr(kit.Engine, "export", full)
    loop = kit.make(tmp_path, kit.Method(), save=save)
    with pytest.raises(EngineError, match="export ran out of memory"):
        loop.run()
    folder = tmp_path / "checkpoints" / "step-4"
    assert verify_folder(folder)["step"] == 4
    assert json.loads((folder / "state.json").read_text())["method"] == {"done": 4}
    said = loop.said[-1]
    assert (
        said == f"nothing is lost: the state after step 4 is in {folder}; write the artifact with: ft resume {tmp_path}"
    )


def test_where_neither_can_be_written_it_says_so(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, path: Path) -> None:
        raise EngineError("no room")

    for name in ("save", "export"):
        monkeypatch.setattr(kit.Engine, name, full)
    loop = kit.make(tmp_path, kit.Method())
    with pytest.raises(EngineError, match="no room"):
        loop.run()
    assert loop.said[-1] == "the state after step 4 could not be saved either: no room"


def test_a_second_signal_while_the_artifact_is_saved_leaves_at_once_and_nothing_half(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Any, path: Path) -> None:
        (path / "weights.txt").write_text("tra")
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(kit.Engine, "export", slow)
    plugin = kit.Listener()
    loop = kit.make(tmp_path, kit.Method(at={2: lambda: os.kill(os.getpid(), signal.SIGINT)}), plugin)
    assert loop.run().status == "interrupted"
    assert plugin.told[-1] == "ft_run_end"
    assert kit.result(tmp_path)["exit_code"] == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "result.json"]
    assert verify_folder(tmp_path / "checkpoints" / "step-2")["step"] == 2
