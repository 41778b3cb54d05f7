"""A live run: its parts, its progress, and saving and restoring them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetooth_hooks.engine import Engine
from finetooth_hooks.protocols import Method
from finetooth_hooks.reports import Outcome
from finetooth_saving.found_checkpoints import Resumable
from finetooth_saving.keeper import Keeper
from finetooth_saving.names import name_of
from finetooth_saving.retention import MEASURED
from finetooth_saving.run_state import Resumed, RunState, random_state, restore_random
from finetooth_saving.state_arrays import own_arrays

from finetooth_core.checkpoints.keeping import not_measured
from finetooth_core.planning.plan import Job
from finetooth_core.plugins.events import Events, Progress
from finetooth_core.plugins.trackers import Trackers
from finetooth_core.running.interrupts import Interrupt
from finetooth_core.running.record import Record
from finetooth_core.running.run_ending import Ending


@dataclass
class LiveRun:
    """A live run.

    Attributes:
        job: the planned run.
        method: drives the engine; its data are prepared.
        engine: built from the job.
        events: plugins to tell.
        progress: shared with the plugins' views.
        manifest: goes into the manifest of everything that is saved (recipe hash, plugin versions).
        say: tells the user one line.
        keeper: saves checkpoints.
        record: what was reported so far.
        trackers: called in addition to the events.
        interrupt: set by a signal.
        evaluated_at: the step of the last whole evaluation.
        saved_at: the step of the last checkpoint.
        seconds: of earlier processes of the run.
        cursor: the method's state after the last whole step.
        version: of the engine's weights after it.
        epoch: passes over the data done.
        resumed_from: this process's checkpoint.
        again: an earlier process has begun the run.
        artifact_step: of the artifact.
    """

    job: Job
    method: Method
    engine: Engine
    events: Events
    progress: Progress
    manifest: Mapping[str, Any]
    say: Callable[[str], None]
    keeper: Keeper
    record: Record = field(default_factory=Record)
    interrupt: Interrupt = field(default_factory=Interrupt)
    evaluated_at: int = -1
    saved_at: int = -1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.trackers = Trackers(self.job.trackers, self.progress, self.say)
        self.cursor: Mapping[str, Any] = {}
        self.version = self.engine.weights_version
        self.epoch = 0.0
        self.resumed_from: Path | None = None
        self.again = False
        self.artifact_step: int | None = None
        self.started = time.perf_counter()

    def go_on(self, checkpoint: Resumable, resumed: Resumed) -> None:
        """Take the state of a checkpoint, before `run`.

        Raises:
            UserError: it does not fit the engine or the method.
        """
        self.method.read_beginning(self.engine)
        for evaluator in self.job.evaluators:
            evaluator.read_beginning(self.engine)
        self.engine.load(checkpoint.folder / "engine")
        self.record.history = checkpoint.history
        self.record.resumed = [*checkpoint.state.resumed, resumed]
        self.seconds = checkpoint.state.seconds
        self.resumed_from = checkpoint.folder
        self.saved_at = checkpoint.state.step
        self.cursor = own_arrays(checkpoint.state.method)
        self.method.restore(checkpoint.state.method)
        self.take(checkpoint.state)
        restore_random(checkpoint.state.random)

    def take(self, state: RunState) -> None:
        """Restore the state, except engine, method and history."""
        self.progress.step, self.epoch, self.version = state.step, state.epoch, self.engine.weights_version
        self.progress.metrics.clear()
        self.progress.metrics.update(state.metrics)
        self.record.best, self.record.bad_steps = dict(state.best), list(state.bad_steps)
        self.evaluated_at = state.evaluated_at
        self.events.restore(state.plugins)
        self.trackers.restore(state.plugins)

    def state(self) -> RunState:
        """The state of the run after the last whole step."""
        return RunState(
            run=str(self.manifest.get("run", "")),
            step=self.progress.step,
            epoch=self.epoch,
            method=self.cursor or own_arrays(self.method.state()),
            plugins={**self.events.state(), **self.trackers.state()},
            metrics=dict(self.progress.metrics),
            best=dict(self.record.best),
            evaluated_at=self.evaluated_at,
            seconds=self.seconds + time.perf_counter() - self.started,
            random=random_state(),
            bad_steps=tuple(self.record.bad_steps),
            resumed=tuple(self.record.resumed),
        )

    def save_checkpoint(self, *, folder: bool = False) -> None:
        """Begin to save engine, method and plugin state together, as they were after the last whole step."""
        about = {**self.manifest, "step": self.progress.step}
        with self.keeper.alike.fails():
            self.keeper.settle()
        self.keeper.alike.later(self.tell_saved)  # of the one before, so that what plugins make of it is in this one
        best = self.keeper.keeping.best
        if best is not None and self.saved_at < 0 and best.metric not in self.progress.metrics:
            have = ", ".join(sorted(self.progress.metrics))
            self.say(
                f"checkpoint: nothing has measured {best.metric} so far, by which the best is chosen; there are {have}"
            )
        self.keeper.save(self.engine, self.state(), self.record.history.lines(), about, folder=folder)
        self.saved_at = self.progress.step

    @property
    def signal(self) -> int:
        """The signal that asked the run to end, at any rank if ranks can only save together; 0: none."""
        return self.keeper.alike.signal(self.interrupt.signal)

    def check_measured(self) -> None:
        """Check that the first evaluation reported the metric that selects the best checkpoint, and those that parts of
        the run wait for.

        Raises:
            RecipeError: no evaluator reports it.
        """
        best = self.keeper.keeping.best
        wanted = ({} if best is None else {"checkpoint.select_on": best.metric}) | self.job.context.awaited
        if self.evaluated_at != self.progress.step:
            return
        known = self.record.measured(self.progress.step)
        for setting, metric in wanted.items():
            if metric.startswith(MEASURED) and metric not in known:
                raise not_measured(setting, metric, known)

    def tell_saved(self) -> None:
        """Call plugins for finished checkpoints."""
        for path in self.keeper.arrived():
            self.events.fire("ft_checkpoint_saved", path=path)

    def outcome(self, ending: Ending, artifact: Path | None) -> Outcome:
        """What result.json will say, as far as it is known now."""
        return Outcome(
            status=ending.status,
            exit_code=ending.exit_code,
            reason=ending.reason,
            steps=self.progress.step,
            metrics=dict(self.progress.metrics),
            best=dict(self.record.best),
            artifact=artifact,
            plan_hash=self.job.plan.hash,
            seconds=self.seconds + time.perf_counter() - self.started,
            artifact_step=self.artifact_step,
            history=tuple(self.record.steps),
            evaluations=tuple(self.record.evaluations),
            data=self.job.reports,
            environment=dict(self.manifest.get("environment", {})),
        )

    @property
    def checkpoint_folder(self) -> Path:
        """The checkpoint's place for the state after the last whole step."""
        return self.keeper.keeping.folder / name_of(self.progress.step)
