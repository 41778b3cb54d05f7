"""Saves a run while it trains.

`Keeper.save` copies the engine's state, and training waits only for that. A thread then moves the copy to the host,
writes a complete folder under a hidden name, asks the gates, renames the folder, and removes superfluous checkpoints.
Another thread sends it to the remote stores. A folder under its final name is complete and has passed the gates.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetooth_hooks.checkpoints import Candidate, Gate, SnapshotStore, StepSnapshot, Store
from finetooth_hooks.engine import Engine, Snapshot
from finetooth_hooks.errors import FinetoothError, StoreError
from finetooth_recipes.cadence import Cadence, Clock
from finetooth_toolbox.blame import error_line, named, reason_of, where, whose
from finetooth_toolbox.files.manifests import MANIFEST, hashes_remembered

from finetooth_saving import history
from finetooth_saving.alike import Alike
from finetooth_saving.artifact import read_manifest, settle_folder, stage_folder, write_text
from finetooth_saving.names import name_of, step_of
from finetooth_saving.quarantine import set_aside
from finetooth_saving.retention import Best, ranked, superfluous
from finetooth_saving.run_state import RunState
from finetooth_saving.writer_thread import Pending, Worker

NEVER = Cadence()


@dataclass(frozen=True)
class Keeping:
    """A recipe's settings for checkpoints.

    Attributes:
        folder: folder for checkpoints: the disk store's, or `checkpoints` in the run folder.
        cadence: when to save.
        last: number of newest checkpoints that stay; 0 is all.
        best: the best ones by a metric stay too.
        disk: keeps checkpoints in `folder`; None if the recipe has no disk store, and they are removed after they were
            sent.
        remote: stores that receive the folders.
        device, host: stores that keep snapshots.
        gates: by name, called from the thread that saves.
        engine_gates: by name, called between two steps.
    """

    folder: Path
    cadence: Cadence = NEVER
    last: int = 0
    best: Best | None = None
    disk: Store | None = None
    remote: tuple[Store, ...] = ()
    device: tuple[SnapshotStore, ...] = ()
    host: tuple[SnapshotStore, ...] = ()
    gates: Mapping[str, Gate] = field(default_factory=dict)
    engine_gates: Mapping[str, Gate] = field(default_factory=dict)

    @property
    def on_disk(self) -> bool:
        """Whether a due save writes a folder."""
        return self.disk is not None or bool(self.remote)

    def states(self, steps: int | None, epochs: float) -> int:
        """How many states will be on the disk at once, in a run of so many steps or epochs."""
        states = self.cadence.times(steps, epochs)
        if not self.last:
            return states
        # one more while the oldest is still there
        return min(states, self.last + (0 if self.best is None else self.best.n) + 1)


@dataclass(frozen=True)
class BestKept:
    """The best checkpoint by a metric: its step, its folder, and the metric's value."""

    step: int
    folder: Path
    value: float


@dataclass(frozen=True)
class Work:
    """A checkpoint that is being saved."""

    state: RunState
    lines: Sequence[bytes]
    snapshot: Snapshot | None
    engine: Engine
    about: Mapping[str, Any]
    folder: bool

    @property
    def name(self) -> str:
        return name_of(self.state.step)


class Keeper:
    """Saves and keeps the checkpoints of one run.

    Args:
        keeping: places, cadence and number.
        texts: files that go into every checkpoint, by name: recipe and plan.
        promote: asks the plugins; returns the reason against a checkpoint.
        say: shows the user one line.
        known: hashes of the run's inputs, called once, from the thread that saves.
        epoch: passes over the data done already.
        alike: the ranks with the same saves. The first of them decides for all: the others keep the same checkpoints.
    """

    def __init__(
        self,
        keeping: Keeping,
        texts: Mapping[str, str],
        promote: Callable[[Candidate], str],
        say: Callable[[str], None],
        *,
        known: Callable[[], Mapping[str, Any]] = dict,
        epoch: float = 0.0,
        alike: Alike | None = None,
    ) -> None:
        self.keeping, self.stalled, self.saved = keeping, 0.0, 0
        self.alike = alike or Alike()
        self._texts, self._promote, self._say, self._known = texts, promote, say, known
        self._clock = Clock(keeping.cadence, time.monotonic(), epoch, self.alike.first)
        self._local, self._sending = Worker("checkpoints"), Worker("uploads")
        self._pending: list[Pending] = []
        self._uploads: list[tuple[str, Pending]] = []
        self._in_place: list[Path] = []
        self._metrics: dict[tuple[int, str], Mapping[str, float]] = {}
        self._stands_on: Mapping[str, Any] | None = None
        self._unsent = ""
        self._newest = -1
        self._left = False
        self._placing = threading.Lock()

    def due(self, step: int, epoch: float) -> bool:
        """Whether to save after this step. If so, ranks also make their earlier checkpoints agree."""
        due = self._clock.due(step, epoch, time.monotonic())
        if due and not self.alike.alone:
            self._keep_alike()
        return due

    def _keep_alike(self) -> None:
        """Remove checkpoints that the first rank does not have: a gate refused them, or they are superfluous there.

        Raises:
            EngineError: a pending save failed at some rank.
        """
        with self.alike.fails(), self.alike.waits():
            self.settle()
        disk = self.keeping.disk
        if disk is not None:
            kept = self.alike.first(list(disk.names()))
            for name in () if self.alike.leads else set(disk.names()) - set(kept):
                disk.remove(name)

    # --- saving -------------------------------------------------------------------------------------------------------

    def save(
        self, engine: Engine, state: RunState, lines: Sequence[bytes], about: Mapping[str, Any], *, folder: bool = False
    ) -> None:
        """Start to save. Training waits for the copy of the engine's state, for a save in progress, and for gates that
        need the engine.

        Args:
            lines: the history up to now.
            about: goes into the manifest.
            folder: write one even if no store asks for it.

        Raises:
            EngineError: the previous save failed.
        """
        begun = time.perf_counter()
        self.settle()
        snapshot = engine.snapshot() if "snapshots" in engine.capabilities else None
        work = Work(state, lines, snapshot, engine, about, folder or self.keeping.on_disk)
        if snapshot is not None:
            for store in self.keeping.device:
                store.put(StepSnapshot(state.step, snapshot, state.as_kept()))
        pending = Pending(lambda: self._keep(work), work.name)
        if snapshot is None or self.keeping.engine_gates:
            pending.run()
        else:
            pending = self._local.hand(work.name, lambda: self._keep(work))
        self._pending.append(pending)
        self.stalled += time.perf_counter() - begun

    def hold(self, engine: Engine, state: RunState) -> None:
        """Keep a snapshot in memory only.

        Raises:
            EngineError: the engine cannot make snapshots.
        """
        snapshot = StepSnapshot(state.step, engine.snapshot(), state.as_kept())
        for store in (*self.keeping.device, *self.keeping.host):
            store.put(snapshot)

    def arrived(self) -> list[Path]:
        """Folders that were completed since the last call.

        Raises:
            EngineError: a save failed. If ranks save together, `settle` raises it at all of them: a rank that stopped
                here would leave the others waiting.
        """
        while self._pending and self._pending[0].done.is_set():
            if self._pending[0].error is not None and not self.alike.alone:
                break
            error = self._pending.pop(0).error
            if error is not None:
                raise error
        folders, self._in_place = self._in_place, []
        return folders

    def settle(self) -> None:
        """Wait until pending saves are written.

        Raises:
            EngineError: a save failed.
        """
        for pending in self._pending:
            pending.done.wait()
        while self._pending:
            error = self._pending.pop(0).error
            if error is not None:
                raise error

    def close(self) -> str:
        """Wait until everything is written and sent; try failed transfers once more.

        Returns:
            the reason why the newest checkpoint is missing in a remote store; empty if it is there, or the run has no
            remote store.

        Raises:
            EngineError: a save failed.
        """
        self.settle()
        self._wait_for_uploads()
        if self._unsent:
            self._send(self._unsent)
            self._wait_for_uploads()
        self._tidy(self.keeping.disk, self._newest)  # checkpoints that had to stay until they were sent
        problem = next((f"{pending.error}" for _, pending in self._uploads if pending.error is not None), "")
        return problem if self._unsent else ""

    def cannot_save(self, error: Exception | None) -> bool:
        """Whether a failed run has lost ranks that saving needs; pending saves are then written."""
        without = error is not None and self.alike.are_lost()
        if without:
            with suppress(FinetoothError):
                self.close()
        return without

    def leave(self) -> None:
        """Do not wait for saves in progress: they are not renamed any more, so that the folder of an ended run does not
        change."""
        for pending in (*self._local.withdraw(), *self._sending.withdraw()):
            pending.done.set()
        with self._placing:  # waits at most for a rename in progress
            self._left = True

    def latest_snapshot(self) -> StepSnapshot | None:
        """The newest snapshot in memory, from the fastest tier that has one."""
        with suppress(FinetoothError):
            self.settle()
        snapshots = [snapshot for store in (*self.keeping.device, *self.keeping.host) for snapshot in store.kept()]
        return max(snapshots, key=lambda snapshot: snapshot.step, default=None)

    def best_kept(self, best: Best) -> BestKept | None:
        """The best checkpoint on disk; None if none has the metric. All ranks choose that of the first rank."""
        self.settle()
        metrics = self._found(self.keeping.disk) if self.keeping.disk else {}
        order = ranked(metrics, best.metric, best.mode)
        chosen = self.alike.first((order[0], metrics[order[0]][best.metric]) if order else None)
        return None if chosen is None else BestKept(chosen[0], self.keeping.folder / name_of(chosen[0]), chosen[1])

    # --- in the thread that saves -------------------------------------------------------------------------------------

    @hashes_remembered()
    def _keep(self, work: Work) -> None:
        snapshot = work.snapshot.to_host() if work.snapshot is not None else None
        if snapshot is not None:
            for store in self.keeping.host:
                store.put(StepSnapshot(work.state.step, snapshot, work.state.as_kept()))
        if not work.folder:
            return
        self._make_known()
        target = self.keeping.folder / work.name

        def fill(folder: Path) -> None:
            if snapshot is not None:
                snapshot.save(folder / "engine")
            else:
                work.engine.save(folder / "engine")
            work.state.write(folder)
            history.write(folder / history.FILE, work.lines)
            for name, text in self._texts.items():
                write_text(folder / name, text)

        about = {**work.about, **(self._stands_on or {}), "kind": "checkpoint", "metrics": work.state.measured_here()}
        with self.alike.waits() if self.keeping.engine_gates else nullcontext():  # all ranks judge together
            staged = stage_folder(target, fill, about)
        try:
            reason = self._judge(Candidate(work.state.step, staged, work.state.metrics), work.engine)
            if reason:
                self._say(f"{work.name} does not count: {reason}; it is in {set_aside(staged, work.name, reason)}")
                return
            with self._placing:
                if self._left:
                    return
                self._place(work.name, staged)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        self.saved += 1
        self._newest = work.state.step
        self._in_place.append(target)
        self._send(work.name)
        self._tidy(self.keeping.disk, work.state.step)

    def _place(self, name: str, staged: Path) -> None:
        target = self.keeping.folder / name
        if target.exists():
            set_aside(target, name, "a run that resumed from an earlier checkpoint saved this step again")
        if self.keeping.disk is not None:
            self.keeping.disk.put(name, staged)
            if not target.is_dir():
                raise _lost(name, self.keeping.disk)
        else:
            settle_folder(staged, target)

    def _judge(self, candidate: Candidate, engine: Engine) -> str:
        """The reason against a checkpoint; empty if it passes. Only the first rank asks the gates, since others may
        have no tensors. Gates that need the engine run at all ranks, and the first rank's answer counts."""
        leads = self.alike.leads
        reason = _objection(self.keeping.gates, candidate) if leads else ""
        if self.keeping.engine_gates and not (reason := self.alike.first(reason)):
            shown = Candidate(candidate.step, candidate.folder, candidate.metrics, engine)
            reason = self.alike.first(_objection(self.keeping.engine_gates, shown))
        return reason or (self._promote(candidate) if leads else "")

    def _make_known(self) -> None:
        if self._stands_on is None:
            self._stands_on = self._known()

    # --- in the thread that sends -------------------------------------------------------------------------------------

    def _send(self, name: str) -> None:
        """Send a folder to the remote stores; it replaces a waiting one."""
        if not self.keeping.remote:
            return
        waiting = {id(pending) for pending in self._sending.withdraw()}
        for passed, pending in self._uploads:
            if id(pending) in waiting:
                pending.done.set()
                self._say(f"{passed} is not sent, {name} is newer: checkpoints come faster than they can be sent")
        self._uploads = [upload for upload in self._uploads if not upload[1].done.is_set()]
        self._unsent = name
        self._uploads = [*self._uploads, (name, self._sending.hand(name, lambda: self._upload(name)))]

    def _upload(self, name: str) -> None:
        problems = []
        for store in self.keeping.remote:
            try:
                self._put(store, name)
            except Exception as error:
                problem = error if isinstance(error, StoreError) else StoreError(store.place, error_line(error))
                problems.append(str(problem))
                continue
            try:
                self._tidy(store, step_of(name) or 0)
            except Exception as error:
                self._say(f"{store.place}: superfluous checkpoints could not be removed: {error_line(error)}")
        if problems:
            self._say(f"{name} could not be sent: {'; '.join(problems)}; it is in {self.keeping.folder}")
            raise StoreError("", f"{name} could not be sent: {'; '.join(problems)}")
        if self._unsent == name:
            self._unsent = ""
        if self.keeping.disk is None:
            shutil.rmtree(self.keeping.folder / name, ignore_errors=True)

    def _put(self, store: Store, name: str) -> None:
        """Send a folder to one store. It replaces a folder of the same run and name: that was damaged, or the run could
        not resume from it and reached its step again.

        Raises:
            StoreError: sending failed.
        """
        folder = self.keeping.folder / name
        try:
            store.put(name, folder)
        except StoreError:
            if not _is_of_same_run(store, name, folder):
                raise
            store.remove(name)
            store.put(name, folder)
        if name not in store.names():
            raise _lost(name, store)

    def _wait_for_uploads(self) -> None:
        for _, pending in self._uploads:
            pending.done.wait()

    # --- what is kept -------------------------------------------------------------------------------------------------

    def _found(self, store: Store) -> dict[int, Mapping[str, float]]:
        """Metrics of a store's checkpoints, by step."""
        metrics: dict[int, Mapping[str, float]] = {}
        for name in store.names():
            step = step_of(name)
            if step is None:
                continue
            key = (id(store), name)
            if key not in self._metrics:
                with suppress(FinetoothError):
                    manifest = read_manifest(store.manifest(name), f"{store.place}/{name}")
                    self._metrics[key] = manifest.get("metrics", {})
            metrics[step] = self._metrics.get(key, {})
        return metrics

    def _tidy(self, store: Store | None, now: int) -> None:
        """Remove superfluous checkpoints from a store, except those that are being sent. A checkpoint of a later step
        than `now` is not from this run's present course: it is ignored, and stays."""
        if store is None or not self.alike.leads:
            return
        busy = {name for name, pending in self._uploads if not pending.done.is_set()}
        mine = store is self.keeping.disk
        by_step = {step: metrics for step, metrics in self._found(store).items() if step <= now}
        for step in superfluous(by_step, self.keeping.last, self.keeping.best):
            name = name_of(step)
            if mine and (name in busy or name == self._unsent):
                continue
            store.remove(name)
            self._metrics.pop((id(store), name), None)


def _objection(gates: Mapping[str, Gate], candidate: Candidate) -> str:
    """The reason of the first gate that refuses a checkpoint; empty if all pass it."""
    for name, gate in gates.items():
        try:
            reason = reason_of(gate.check(candidate), gate.check)
        except (Exception, SystemExit) as error:
            reason = named(error)
        if reason:
            return f"gate {name}: {reason}"
    return ""


def _lost(name: str, store: Store) -> StoreError:
    """The error for a store that reports success and lacks the checkpoint."""
    return StoreError("", f"{whose(store.put)}put() kept no {name}{where(store.put)}")


def _is_of_same_run(store: Store, name: str, folder: Path) -> bool:
    """Whether a store has another checkpoint of this name and run."""
    try:
        there, here = store.manifest(name), (folder / MANIFEST).read_bytes()
        run = json.loads(here).get("run")
        return there != here and bool(run) and json.loads(there).get("run") == run
    except (FinetoothError, OSError, ValueError, AttributeError):
        return False
