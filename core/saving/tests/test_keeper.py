"""What is saved in the background: order, gates, quarantine, retention, stores that fail."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
import threading
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import EngineError, StoreError, UserError
from finetooth_hooks.bases import EngineBase
from finetooth_hooks.checkpoints import Candidate
from finetooth_recipes.cadence import Cadence
from finetooth_saving.alike import Alike
from finetooth_saving.artifact import verify_folder, write_folder
from finetooth_saving.found_checkpoints import newest_good
from finetooth_saving.keeper import BestKept, Keeper, Keeping
from finetooth_saving.retention import Best
from finetooth_saving.run_folder import scratch
from finetooth_saving.run_state import RunState


@dataclass(frozen=True)
class Copy:
    """A snapshot of one number."""

    value: int
    nbytes: int = 8

    def to_host(self) -> Copy:
        return self

    def save(self, path: Path) -> None:
        path.mkdir(parents=True)
        (path / "state.json").write_text(str(self.value))


@dataclass
class Counting(EngineBase):
    """An engine that is one number."""

    capabilities = frozenset({"snapshots"})

    value: int = 0

    def snapshot(self) -> Copy:
        return Copy(self.value)

    def rollback(self, snapshot: Any) -> None:
        self.value = snapshot.value


@dataclass
class Folders:
    """A store that copies; of the tier disk it renames."""

    root: Path
    moves: bool = True
    fails: list[Exception] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event | None = None

    @property
    def place(self) -> str:
        return str(self.root)

    def names(self) -> list[str]:
        return [path.name for path in self.root.glob("step-*")]

    def manifest(self, name: str) -> bytes:
        return (self.root / name / "manifest.json").read_bytes()

    def put(self, name: str, folder: Path) -> None:
        self.entered.set()
        if self.go_on is not None:
            self.go_on.wait(20)
        if self.fails:
            raise self.fails.pop(0)
        if self.moves:
            folder.rename(self.root / name)
        else:
            shutil.copytree(folder, self.root / name)

    def fetch(self, name: str, folder: Path) -> None:
        shutil.copytree(self.root / name, folder, dirs_exist_ok=True)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.root / name)


@dataclass
class Refusing:
    """A gate that refuses some steps."""

    steps: tuple[int, ...]

    def check(self, candidate: Candidate) -> str:
        assert (candidate.folder / "manifest.json").is_file()
        return "it is odd" if candidate.step in self.steps else ""


def state(step: int, **metrics: float) -> RunState:
    return RunState("run", step, 0.0, {}, {}, metrics, {}, -1, 0.0)


def keeper(tmp_path: Path, **changes: Any) -> tuple[Keeper, list[str]]:
    said: list[str] = []
    folder = tmp_path / "checkpoints"
    keeping = replace(Keeping(folder, Cadence(steps=1), disk=Folders(folder)), **changes)
    return Keeper(keeping, {"recipe.yaml": "model: m\n", "plan.json": "{}"}, lambda candidate: "", said.append), said


def save(one: Keeper, step: int, **metrics: float) -> None:
    one.save(Counting(step), state(step, **metrics), (), {"step": step, "run": "run"})  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_checkpoint_is_whole_when_it_has_its_name_and_is_told_of_once(tmp_path: Path) -> None:
    one, _ = keeper(tmp_path)
    save(one, 5, loss=1.5)
    one.settle()
    (path,) = one.arrived()
    assert one.arrived() == []
    manifest = verify_folder(path)
    assert (manifest["step"], manifest["metrics"], manifest["kind"]) == (5, {"loss": 1.5}, "checkpoint")
    assert sorted(manifest["files"]) == [
        "engine/state.json", "history.jsonl.gz", "plan.json", "recipe.yaml", "state.json"
    ]  # fmt: skip
    assert newest_good(one.keeping, "run", print).state.step == 5


def test_what_was_written_is_let_go_of(tmp_path: Path) -> None:
    """The copy of a state must not lie in memory until the next one: as large as all that trains."""

    class Copying(Counting):
        def snapshot(self) -> Copy:
            found = super().snapshot()
            copies.append(weakref.ref(found))
            return found

    copies: list[weakref.ref[Copy]] = []
    one, _ = keeper(tmp_path)
    one.save(Copying(1), state(1), (), {"step": 1, "run": "run"})  # type: ignore[arg-type]
    for pending in one._pending:
        pending.done.wait(20)
    gc.collect()
    assert [copy() for copy in copies] == [None]
    one.settle()


def test_training_goes_on_while_it_is_written(tmp_path: Path) -> None:
    waiting = threading.Event()
    folder = tmp_path / "checkpoints"
    one, _ = keeper(tmp_path, disk=Folders(folder, go_on=waiting))
    save(one, 1)  # returns though the disk waits
    assert one.arrived() == []
    waiting.set()
    one.settle()
    assert [path.name for path in one.arrived()] == ["step-1"]


def test_what_is_being_written_when_a_run_is_left_gets_no_place_any_more(tmp_path: Path) -> None:
    class Slow:
        entered, go_on = threading.Event(), threading.Event()

        def check(self, candidate: Candidate) -> str:
            self.entered.set()
            self.go_on.wait(20)
            return ""

    one, _ = keeper(tmp_path, gates={"slow": Slow()})
    save(one, 1)
    assert Slow.entered.wait(20)
    one.leave()  # does not wait for the gate
    Slow.go_on.set()
    one.settle()
    assert list((tmp_path / "checkpoints").iterdir()) == [] and one.arrived() == []


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    one, _ = keeper(tmp_path, last=2, best=Best(1, "loss", "min"))
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.6)):
        save(one, step, loss=loss)
    one.close()
    assert names(tmp_path / "checkpoints") == ["step-2", "step-4", "step-5"]
    best = Best(1, "loss", "min")
    assert one.best_kept(best) == BestKept(2, tmp_path / "checkpoints" / "step-2", 1.0)


def test_what_a_gate_refuses_is_in_quarantine_with_the_reason_and_is_not_the_latest(tmp_path: Path) -> None:
    one, said = keeper(tmp_path, gates={"odd": Refusing((2, 3))}, last=1)
    for step in (1, 2, 3):
        save(one, step)
    one.close()
    aside = tmp_path / "checkpoints" / "quarantine"
    assert names(aside) == ["step-2", "step-3"]
    assert (aside / "step-2" / "reason.txt").read_text() == "gate odd: it is odd\n"
    assert said[0].startswith("step-2 does not count: gate odd: it is odd; it is in ")
    assert newest_good(one.keeping, "run", print).state.step == 1
    assert [path.name for path in one.arrived()] == ["step-1"]


def test_a_gate_that_fails_is_a_refusal(tmp_path: Path) -> None:
    class Broken:
        def check(self, candidate: Candidate) -> str:
            raise ZeroDivisionError("of course")

    one, said = keeper(tmp_path, gates={"broken": Broken()})
    save(one, 1)
    one.close()
    assert "gate broken: ZeroDivisionError: of course" in said[0]


@pytest.mark.parametrize(("answer", "said_of_it"), [(None, "None,"), (3, "an int, 3,"), (True, "a bool, True,")])
def test_a_gate_that_answers_no_text_lets_nothing_pass(tmp_path: Path, answer: Any, said_of_it: str) -> None:
    class Forgetful:
        def check(self, candidate: Candidate) -> Any:
            return answer

    one, said = keeper(tmp_path, gates={"forgetful": Forgetful()})
    save(one, 1)
    one.close()
    assert f"gate forgetful: check() returned {said_of_it} not text: return '' to let" in said[0]
    assert f"{__file__}:" in said[0] and not (tmp_path / "checkpoints" / "step-1").exists()


def test_a_gate_that_needs_the_engine_gets_it_in_the_state_that_was_saved(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Probing:
        def check(self, candidate: Candidate) -> str:
            assert candidate.engine is not None and threading.current_thread() is threading.main_thread()
            seen.append((candidate.step, candidate.engine.value))  # type: ignore[attr-defined]
            return ""

    one, _ = keeper(tmp_path, engine_gates={"probe": Probing()})
    save(one, 1)
    save(one, 2)
    assert seen == [(1, 1), (2, 2)]


def test_a_disk_that_is_full_is_said_at_the_next_step_and_leaves_nothing_half(tmp_path: Path) -> None:
    class Full(Copy):
        def save(self, path: Path) -> None:
            raise OSError(28, "No space left on device")

    class Unlucky(Counting):
        def snapshot(self) -> Copy:
            return Full(self.value)

    one, _ = keeper(tmp_path)
    save(one, 1)
    one.save(Unlucky(2), state(2), (), {"step": 2, "run": "run"})  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"step-2 cannot be written: No space left on device"):
        one.settle()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_where_another_rank_works_is_named_as_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    run = scratch(tmp_path / "mine", resumes=False)
    with pytest.raises(EngineError, match=rf"^{run}/artifact cannot be written: No space left.*set TMPDIR to another"):
        write_folder(run / "artifact", fill, {})


def test_folders_are_sent_and_what_fails_is_tried_again_at_the_end(tmp_path: Path) -> None:
    far = Folders(tmp_path / "far", moves=False, fails=[StoreError("far", "no answer")])
    far.root.mkdir()
    one, said = keeper(tmp_path, remote=(far,))
    save(one, 1)
    assert one.close() == ""
    assert names(far.root) == ["step-1"]
    assert said[0].startswith("step-1 could not be sent: far: no answer; it is in ")


def test_what_cannot_be_sent_at_all_is_said_at_the_end_and_stays_on_disk(tmp_path: Path) -> None:
    far = Folders(tmp_path / "far", moves=False, fails=[StoreError("far", "no answer") for _ in range(9)])
    far.root.mkdir()
    one, _ = keeper(tmp_path, remote=(far,), disk=None, last=1)
    save(one, 1)
    assert "step-1 could not be sent: far: no answer" in one.close()
    assert verify_folder(tmp_path / "checkpoints" / "step-1")["step"] == 1


def test_without_a_store_on_disk_a_folder_goes_once_it_was_sent(tmp_path: Path) -> None:
    far = Folders(tmp_path / "far", moves=False)
    far.root.mkdir()
    one, _ = keeper(tmp_path, remote=(far,), disk=None)
    save(one, 1)
    assert one.close() == ""
    assert names(tmp_path / "checkpoints") == []
    assert newest_good(one.keeping, "run", print).state.step == 1  # which brings it back


def test_a_slow_store_gets_the_newest_and_what_was_passed_is_said(tmp_path: Path) -> None:
    slow = Folders(tmp_path / "far", moves=False, go_on=threading.Event())
    slow.root.mkdir()
    one, said = keeper(tmp_path, remote=(slow,), last=1)
    save(one, 1)
    one.settle()
    assert slow.entered.wait(20)
    for step in (2, 3):
        save(one, step)
        one.settle()
    assert names(tmp_path / "checkpoints") == ["step-1", "step-3"]  # the first is still being sent
    assert slow.go_on is not None
    slow.go_on.set()
    assert one.close() == ""
    assert "step-2 is not sent, step-3 is newer: checkpoints come faster than they can be sent" in said
    assert "step-3" in names(slow.root) and "step-2" not in names(slow.root)


def test_snapshots_are_held_and_the_newest_is_found(tmp_path: Path) -> None:
    @dataclass
    class Memory:
        held: list[Any] = field(default_factory=list)
        most: int = 2

        def put(self, kept: Any) -> None:
            self.held.append(kept)

        def kept(self) -> list[Any]:
            return self.held

    memory = Memory()
    one, _ = keeper(tmp_path, device=(memory,), disk=None)
    for step in (1, 2):
        save(one, step)
    newest = one.latest_snapshot()
    assert newest is not None and (newest.step, newest.snapshot) == (2, Copy(2))
    assert not (tmp_path / "checkpoints").exists()  # memory alone writes nothing


@pytest.mark.parametrize("what", ["flipped", "short", "gone", "manifest", "swapped", "link", "extra", "state"])
def test_damage_is_named_set_aside_and_the_one_before_is_found(tmp_path: Path, what: str) -> None:
    one, _ = keeper(tmp_path)
    for step in (1, 2):
        save(one, step)
    one.close()
    folder = tmp_path / "checkpoints" / "step-2"
    file = folder / "engine" / "state.json"
    if what == "flipped":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]))
    elif what == "short":
        file.write_bytes(b"")
    elif what == "gone":
        file.unlink()
    elif what == "manifest":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "step": 3}))
    elif what == "swapped":
        shutil.copy(tmp_path / "checkpoints" / "step-1" / "manifest.json", folder / "manifest.json")
    elif what == "link":
        shutil.move(file, tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif what == "extra":
        (folder / "engine" / "more.safetensors").write_text("x")
    elif what == "state":
        (folder / "manifest.json").unlink()
    said: list[str] = []
    found = newest_good(one.keeping, "run", said.append)
    assert found.state.step == 1
    assert len(said) == 1 and said[0].startswith("step-2 cannot be used: ")
    assert names(tmp_path / "checkpoints" / "quarantine") == ["step-2"]


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    one, _ = keeper(tmp_path)
    save(one, 1)
    one.close()
    said: list[str] = []
    with pytest.raises(UserError, match="no checkpoint is whole, 1 cannot be used"):
        newest_good(one.keeping, "other", said.append)
    assert "is a checkpoint of another run" in said[0]
    assert names(tmp_path / "checkpoints") == ["step-1"]  # it is whole, and somebody else's: it stays where it is


def test_a_run_that_goes_back_leaves_nothing_newer_to_be_taken_for_its_own(tmp_path: Path) -> None:
    one, _ = keeper(tmp_path, last=2)
    for step in (1, 2, 3):
        save(one, step)
    one.close()
    assert names(tmp_path / "checkpoints") == ["step-2", "step-3"]
    said: list[str] = []
    assert newest_good(one.keeping, "run", said.append, at=2).state.step == 2
    aside = tmp_path / "checkpoints" / "quarantine" / "step-3"
    assert said == [f"step-3 is in {aside}"]
    assert (aside / "reason.txt").read_text() == "the run went on from step 2\n"
    assert newest_good(one.keeping, "run", said.append).state.step == 2


def test_a_run_does_not_go_back_behind_what_was_sent(tmp_path: Path) -> None:
    far = Folders(tmp_path / "far", moves=False)
    far.root.mkdir()
    one, _ = keeper(tmp_path, remote=(far,))
    for step in (1, 2):
        save(one, step)
        one.close()
    with pytest.raises(UserError, match=r"far already holds step-2; a run that resumes from step 1 would mix with"):
        newest_good(one.keeping, "run", print, at=1)
    assert names(far.root) == names(tmp_path / "checkpoints") == ["step-1", "step-2"]
    assert newest_good(one.keeping, "run", print, at=2).state.step == 2


class Faithful(Folders):
    """Takes no other checkpoint under a name that it keeps, as stores do."""

    def put(self, name: str, folder: Path) -> None:
        if (self.root / name).exists():
            raise StoreError(self.place, "another checkpoint of this name is kept")
        super().put(name, folder)


def far_with_a_later_step(tmp_path: Path, run: str) -> Folders:
    """A remote store that holds step 1, and a step 2 that is damaged."""
    far = Faithful(tmp_path / "far", moves=False)
    far.root.mkdir()
    first, _ = keeper(tmp_path / "first", remote=(far,))
    (tmp_path / "first").mkdir()
    for step in (1, 2):
        first.save(Counting(step), state(step), (), {"step": step, "run": run})  # type: ignore[arg-type]
        first.close()
    (far.root / "step-2" / "engine" / "state.json").write_text("torn")
    return far


def test_what_a_run_could_not_go_on_from_gives_way_to_what_it_sends(tmp_path: Path) -> None:
    far = far_with_a_later_step(tmp_path, "run")
    one, said = keeper(tmp_path, remote=(far,), last=1)
    assert newest_good(one.keeping, "run", said.append).state.step == 1
    one.save(Counting(7), state(2), (), {"step": 2, "run": "run"})  # type: ignore[arg-type]
    assert one.close() == ""
    assert verify_folder(far.root / "step-2")["step"] == 2
    assert (far.root / "step-2" / "engine" / "state.json").read_text() == "7"


def test_a_step_that_a_run_has_not_come_to_is_not_its_newest(tmp_path: Path) -> None:
    far = far_with_a_later_step(tmp_path, "run")
    one, _ = keeper(tmp_path, remote=(far,), last=1)
    newest_good(one.keeping, "run", print)
    one.save(Counting(), replace(state(1), seconds=1.0), (), {"step": 1, "run": "run"})  # type: ignore[arg-type]
    assert one.close() == ""
    assert names(far.root) == ["step-1", "step-2"]  # the damaged one did not push it out


def test_what_another_run_sent_is_not_touched(tmp_path: Path) -> None:
    far = far_with_a_later_step(tmp_path, "other")
    one, _ = keeper(tmp_path, remote=(far,))
    save(one, 2)
    assert "another checkpoint of this name is kept" in one.close()
    assert (far.root / "step-2" / "engine" / "state.json").read_text() == "torn"


def follower(folder: Path, told: list[Any], **changes: Any) -> Keeper:
    """Of a rank that is told what the first one said; of its own token first."""
    line: Any = SimpleNamespace(broadcast=lambda own: told.pop(0), gather=lambda own: [0, own])
    keeping = replace(Keeping(folder, Cadence(steps=1), disk=Folders(folder)), **changes)
    return Keeper(keeping, {}, lambda candidate: "never", print, alike=Alike(line))


def test_a_rank_keeps_and_chooses_what_the_first_one_does(tmp_path: Path) -> None:
    """Its own gate and plugins would refuse everything, it would keep one, and think another the best."""
    said = ["token", ["step-1", "step-3"], (1, 4.0)]
    one = follower(tmp_path / "checkpoints", said, gates={"odd": Refusing((1, 2, 3))}, last=1)
    for step in (1, 2, 3):
        save(one, step, loss=float(step))
    assert one.due(4, 0.0)
    assert names(tmp_path / "checkpoints") == ["step-1", "step-3"]
    assert one.best_kept(Best(1, "loss", "min")) == BestKept(1, tmp_path / "checkpoints" / "step-1", 4.0)


def test_a_gate_with_the_engine_is_asked_at_every_rank_and_the_first_ones_answer_counts(tmp_path: Path) -> None:
    asked: list[Any] = []

    def check(candidate: Candidate) -> str:
        asked.append(candidate.engine)
        return "not here"

    said, gates = ["token", "gate odd: no", "", ""], {"probe": SimpleNamespace(check=check)}
    one = follower(tmp_path / "checkpoints", said, engine_gates=gates)
    save(one, 1)  # the first rank refused it before it came to the engine
    assert not asked
    save(one, 2)
    assert [engine is not None for engine in asked] == [True]
    assert {"step-1", "step-2"} & set(names(tmp_path / "checkpoints")) == {"step-2"}
