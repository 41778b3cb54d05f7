"""The run loop: one optimizer step after the other, and between two steps everything else.

Read `Loop.run` top to bottom: it is a run. The method yields steps (`Loop.steps`); trackers and event hooks are told;
evaluations and checkpoints happen when they are due. However the run ends, what was trained is kept, `ft_run_end`
fires, and result.json says how it went.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetooth_hooks.checkpoints import ResumingTracker
from finetooth_hooks.engine import OBSERVERS_SPAN, STEP_SPAN, Engine, Interruptible
from finetooth_hooks.errors import EngineError, FinetoothError, Interrupted, NotFinite, StopRun
from finetooth_hooks.protocols import Method, ReadsBeginning
from finetooth_hooks.reports import Evaluation, Outcome, StepReport

from finetooth_core.artifact import write_folder, write_json
from finetooth_core.checkpoints.keeper import Keeper
from finetooth_core.checkpoints.names import name_of, newest_first
from finetooth_core.checkpoints.resume import Found
from finetooth_core.checkpoints.run_state import (
    BadStep,
    Resumed,
    RunState,
    as_state,
    random_state,
    restore_random,
    seed_random,
)
from finetooth_core.endings import LEFT, Ending, failed, result
from finetooth_core.events import Events, Progress, RunView
from finetooth_core.interrupts import Interrupt, interrupts
from finetooth_core.meter import Meter
from finetooth_core.plan import Job
from finetooth_core.record import Record
from finetooth_core.recording import Recorder

BAD_IN_A_ROW = 10
"""After so many steps in a row that were not finite, the run stops whatever `train.on_bad_step` says."""


@dataclass
class Loop:
    """One run.

    Attributes:
        job: the decided run.
        method: drives the engine; its data are prepared.
        engine: built from the job.
        events: plugins to tell.
        progress: shared with the plugins' views.
        manifest: goes into the manifest of everything that is saved (recipe hash, plugin versions).
        say: tells the user one line.
        keeper: saves checkpoints.
        record: what was reported so far.
        interrupt: set by a signal.
        evaluated_at: the step of the last whole evaluation.
        saved_at: the step of the last checkpoint.
        seconds: that earlier processes have spent on the run.
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
        self.view = RunView(self.progress, None, {})
        self.meter = Meter(self.engine)
        profile, folder = self.job.context.recipe.profile, self.job.context.folder
        self.recorder = Recorder(self.engine, profile.start, profile.steps, folder, self.say)
        self.cursor: Mapping[str, Any] = {}
        self.epoch = 0.0
        self.resumed_from: Path | None = None
        self.again = False
        self.artifact_step: int | None = None
        self.bad_in_a_row = 0
        self.started = time.perf_counter()

    def go_on(self, found: Found, resumed: Resumed) -> None:
        """Take the state of a checkpoint, before `run`.

        Raises:
            UserError: it does not fit the engine or the method.
        """
        for part in (self.method, *self.job.evaluators):
            if isinstance(part, ReadsBeginning):
                part.read_beginning(self.engine)
        self.engine.load(found.folder / "engine")
        self.record.history = found.history
        self.record.resumed = [*found.state.resumed, resumed]
        self.seconds = found.state.seconds
        self.resumed_from = found.folder
        self.saved_at = found.state.step
        self.method.restore(found.state.method)
        self.cursor = found.state.method
        self.take(found.state)
        restore_random(found.state.random)

    def take(self, state: RunState) -> None:
        """Be where the state says, but for engine, method and history."""
        self.progress.step, self.epoch = state.step, state.epoch
        self.progress.metrics.clear()
        self.progress.metrics.update(state.metrics)
        self.record.best, self.record.bad_steps = dict(state.best), list(state.bad_steps)
        self.evaluated_at = state.evaluated_at
        self.events.restore(state.plugins)

    def run(self, *, again: bool = False) -> Outcome:
        """Train, keep what was trained, and report how it ended.

        Args:
            again: an earlier process has begun the run and saved nothing.

        Raises:
            FinetoothError: the run failed; result.json says so already.
        """
        self.started = time.perf_counter()
        self.again = again or self.resumed_from is not None
        artifact: Path | None = None
        with interrupts(self.interrupt):
            if isinstance(self.engine, Interruptible):
                self.engine.interrupt_when(self.interrupt.asked)
            try:
                ending = self.steps()
            except StopRun as stop:
                ending = Ending("stopped", stop.reason, stop.exit_code)
            except KeyboardInterrupt:
                ending = LEFT
            except Exception as error:
                ending = failed(error)
            if isinstance(self.engine, Interruptible):
                self.engine.interrupt_when(lambda: False)
            self.recorder.close(self.progress.step)
            left = ending is LEFT
            try:
                if not left:
                    artifact, ending = self.keep(ending)
            except KeyboardInterrupt:
                left, ending = True, replace(LEFT, reason="interrupted twice; what was being saved was dropped")
            if left:
                self.keeper.leave()
            ending = self.end(ending, artifact)
            outcome = self.outcome(ending, artifact)
            ending = self.write_result(outcome, ending)
        if ending.error is not None:
            raise ending.error
        if outcome.status == "interrupted":
            self.say(f"{outcome.reason}: {self.what_is_kept(artifact)}")
        return outcome

    def write_result(self, outcome: Outcome, ending: Ending) -> Ending:
        """Write result.json; that it cannot be written never hides how the run ended otherwise."""
        path = self.job.context.folder / "result.json"
        try:
            write_json(path, result(outcome, self.manifest, self.kept()))
        except OSError as error:
            problem = EngineError(f"{path} cannot be written: {error.strerror or error}", action="make room")
            if ending.error is None and ending.status != "interrupted":
                return failed(problem)
            self.say(str(problem))
        return ending

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
        )

    # --- steps --------------------------------------------------------------------------------------------------------

    def steps(self) -> Ending:
        """Every step of the method, and what is due between two of them. An interrupt is looked at wherever something
        long has ended."""
        recipe = self.job.context.recipe
        if self.resumed_from is None:
            seed_random(self.job.context.generator("plugins"))
        self.begin()
        if recipe.evaluate.before and self.progress.step == 0 and self.evaluated_at < 0:
            self.evaluate()
        if recipe.train.on_bad_step == "rollback":
            self.keeper.hold(self.engine, self.state())
        steps = self.method.steps(self.engine)
        self.recorder.before(self.progress.step + 1)
        clock = time.perf_counter()
        while not self.interrupt.signal:
            drawn = random_state()
            try:
                with self.recorder.span(STEP_SPAN):
                    report = next(steps, None)
            except NotFinite as error:
                steps = self.go_on_after(error)
                continue
            except Interrupted:
                self.engine.zero_grad()
                restore_random(drawn)  # what a plugin drew in the step that is dropped, it draws again
                break
            if report is None:
                break
            report = self.meter.measured(report, time.perf_counter() - clock)
            self.cursor = self.method.state()  # a step that fails has moved it already
            with self.recorder.span(OBSERVERS_SPAN):
                self.tell(report)
            self.recorder.after(report.step)
            last = report.step == self.progress.total_steps  # evaluated at the end anyway: before it is saved
            if last or (recipe.evaluate.every and report.step % recipe.evaluate.every == 0):
                self.evaluate()
            if self.keeper.due(report.step, report.epoch):
                self.save_checkpoint()
            self.tell_saved()
            self.recorder.before(report.step + 1)
            clock = time.perf_counter()
        if self.evaluated_at != self.progress.step:
            self.evaluate()
        if self.interrupt.signal:
            name = signal.Signals(self.interrupt.signal).name
            return Ending("interrupted", f"{name} after step {self.progress.step}", 128 + self.interrupt.signal)
        return Ending()

    def begin(self) -> None:
        """Tell trackers and plugins that the run begins, or goes on."""
        for tracker in self.job.trackers:
            self.start_tracker(tracker)
        plugins = self.events.state()
        self.events.fire("ft_run_start")
        self.events.restore(plugins)  # what a plugin sets when it starts does not undo what it had
        if self.resumed_from is not None:  # saved before anybody could be told
            self.events.fire("ft_checkpoint_saved", path=self.resumed_from)

    def start_tracker(self, tracker: Any) -> None:
        """`start`, or `resume` where there is something to go on from."""
        if self.again and isinstance(tracker, ResumingTracker):
            tracker.resume(self.view, tuple(self.record.history.reports))
        else:
            tracker.start(self.view)

    def tell(self, report: StepReport) -> None:
        """Record a step and tell trackers and plugins."""
        self.progress.step, self.epoch = report.step, report.epoch
        self.progress.metrics |= {"loss": report.loss, **report.metrics}
        self.bad_in_a_row = 0
        self.record.history.add(report)
        for tracker in self.job.trackers:
            tracker.step(self.view, report)
        self.events.fire("ft_step", report=report)

    def evaluate(self) -> None:
        """Run every evaluator; metrics are recorded as `eval/NAME`, the best value of each evaluator's first one is
        kept."""
        for evaluator in self.job.evaluators:
            if self.interrupt.signal:
                return
            try:
                evaluation = evaluator.evaluate(self.engine, self.progress.step)
            except Interrupted:
                return
            self.remember(evaluation)
            for tracker in self.job.trackers:
                tracker.evaluated(self.view, evaluation)
            self.events.fire("ft_evaluated", evaluation=evaluation)
        self.evaluated_at = self.progress.step

    def remember(self, evaluation: Evaluation) -> None:
        """Keep an evaluation, its metrics, and the best value of its first metric."""
        self.record.history.add(evaluation)
        metrics = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        self.progress.metrics |= metrics
        self.job.request.updates.schedule.observe(metrics)  # for a schedule that watches an evaluation
        first = next(iter(evaluation.metrics), None)
        if first is not None and math.isfinite(evaluation.metrics[first]):
            name, value = f"eval/{first}", evaluation.metrics[first]
            better = max if evaluation.higher_is_better else min
            self.record.best[name] = better(value, self.record.best.get(name, value))

    def go_on_after(self, error: NotFinite) -> Iterator[StepReport]:
        """After a step that was not finite: record it, and pass its data over, as `train.on_bad_step` says.

        A rollback takes weights and optimizer back to the newest snapshot, while the data go on behind the bad ones
        (as in PaLM, Chowdhery et al., 2022, arXiv:2204.02311, section 5.1): the same data again would only lead to the
        same place.

        Raises:
            NotFinite: it says to stop.
            EngineError: too many in a row.
        """
        policy = self.job.context.recipe.train.on_bad_step
        if policy == "stop":
            raise error
        self.bad_in_a_row += 1
        if self.bad_in_a_row > BAD_IN_A_ROW:
            raise EngineError(
                f"{BAD_IN_A_ROW} steps in a row were not finite; the last one: {error.problem}",
                action="lower optimizer.learning_rate, or look at the data; nothing more is passed over",
            ) from error
        step, cursor = self.progress.step + 1, self.method.state()  # which is behind the bad data
        self.engine.zero_grad()
        if policy == "rollback":
            self.roll_back()
        bad = BadStep(step, error.problem, error.rows, policy, self.progress.step)
        self.record.bad_steps.append(bad)
        self.progress.metrics["bad_steps"] = float(len(self.record.bad_steps))
        rows = f" (rows {', '.join(error.rows[:3])}{', ...' if len(error.rows) > 3 else ''})" if error.rows else ""
        back = f"; back to step {bad.back_to}" if policy == "rollback" else ""
        self.say(f"step {step} is passed over: {error.problem}{rows}{back}")
        self.method.restore(cursor)
        self.cursor = cursor  # an interrupt from here on saves a state behind the bad data
        return self.method.steps(self.engine)

    def roll_back(self) -> None:
        """To the newest snapshot in memory."""
        kept = self.keeper.latest_snapshot()
        assert kept is not None  # one was taken before the first step
        self.engine.rollback(kept.snapshot)  # type: ignore[attr-defined]
        bad = self.record.bad_steps
        self.take(as_state(kept.state))
        self.record.bad_steps = bad
        self.record.history.cut(kept.step)
        for tracker in self.job.trackers:
            if isinstance(tracker, ResumingTracker):
                tracker.resume(self.view, tuple(self.record.history.reports))

    # --- keeping ------------------------------------------------------------------------------------------------------

    def keep(self, ending: Ending) -> tuple[Path | None, Ending]:
        """Save the last state and the artifact, however the steps ended: a failed step has not touched the weights."""
        if not self.progress.step:
            return None, ending
        ending = self.keep_state(ending)
        target = self.job.context.folder / "artifact"
        try:
            self.save_artifact(target, selects=ending.status in ("done", "stopped"))
        except StopRun as stop:  # raised by a hook that was told of the artifact: it is in place
            return target, ending.stopped(stop)
        except Exception as error:
            if ending.error is not None:
                self.say(f"what was trained could not be saved: {error}")
            kept = target if target.exists() else None
            return kept, ending if ending.error else failed(error)
        return target, ending

    def keep_state(self, ending: Ending) -> Ending:
        """A checkpoint of the last whole step: if checkpoints are kept, and in any case after an interrupt or a step
        that failed, so that nothing is lost."""
        broken = ending.status == "interrupted" or isinstance(ending.error, EngineError)
        wanted = broken or (self.keeper.keeping.cadence and self.keeper.keeping.on_disk)
        unsent = ""
        try:
            if wanted and self.saved_at != self.progress.step:
                self.save_checkpoint(folder=True)
            unsent = self.keeper.close()
            self.tell_saved()
        except StopRun as stop:
            ending = ending.stopped(stop)
        except Exception as error:
            self.say_what_was_saved()
            if ending.error is None and ending.status != "interrupted":
                return failed(error)
            self.say(f"the state after step {self.progress.step} could not be saved: {error}")
            return ending
        if unsent and ending.exit_code == 0:
            ending = replace(ending, reason=unsent, exit_code=1)
        if isinstance(ending.error, EngineError):
            self.say(f"the state after step {self.progress.step}, the last whole one, is in {self.checkpoint_folder}")
        return ending

    def end(self, ending: Ending, artifact: Path | None) -> Ending:
        """Tell trackers and plugins. Whatever they raise, result.json is written; a StopRun still sets the exit code of
        a run that was done."""
        for tracker in self.job.trackers:
            try:
                tracker.end(self.view, self.outcome(ending, artifact))
            except Exception as error:
                ending = ending if ending.error else failed(error)
        try:
            self.events.fire("ft_run_end", outcome=self.outcome(ending, artifact))
        except StopRun as stop:
            return ending.stopped(stop)
        except FinetoothError as error:
            return ending if ending.error else failed(error)
        return ending

    def save_artifact(self, target: Path, *, selects: bool) -> None:
        """What was trained, in the layout that other tools load: of the last step, or of the best checkpoint."""
        self.artifact_step = self.progress.step
        metric = self.job.context.recipe.checkpoint.select_on
        if metric is not None and selects:
            self.artifact_step = self.select(metric)
        about = {**self.manifest, "step": self.artifact_step, "kind": "artifact"}
        write_folder(target, self.engine.export, about, replace=self.again)
        self.events.fire("ft_checkpoint_saved", path=target)

    def select(self, metric: str) -> int:
        """Load the best checkpoint; returns its step."""
        best = self.keeper.keeping.best
        found = self.keeper.best_folder(best) if best is not None else None
        if found is None:
            self.say(
                f"checkpoint.select_on: no checkpoint has the metric {metric}, measured at its step; the artifact is "
                "of the last step"
            )
            return self.progress.step
        step, folder = found
        if step != self.progress.step:
            self.engine.load(folder / "engine")
        return step

    @property
    def checkpoint_folder(self) -> Path:
        """Where the state after the last whole step belongs."""
        return self.keeper.keeping.folder / name_of(self.progress.step)

    def state(self) -> RunState:
        """Where the run is, after the last whole step."""
        return RunState(
            run=str(self.manifest.get("run", "")),
            step=self.progress.step,
            epoch=self.epoch,
            method=self.cursor or self.method.state(),
            plugins=self.events.state(),
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
        self.keeper.settle()
        self.tell_saved()  # of the one before, so that what plugins make of it is in this one
        best = self.keeper.keeping.best
        if best is not None and self.saved_at < 0 and best.metric not in self.progress.metrics:
            have = ", ".join(sorted(self.progress.metrics))
            self.say(
                f"checkpoint: nothing has measured {best.metric} so far, by which the best is chosen; there are {have}"
            )
        self.keeper.save(self.engine, self.state(), self.record.history.lines(), about, folder=folder)
        self.saved_at = self.progress.step

    def tell_saved(self) -> None:
        """Tell plugins of checkpoints that have come into their place."""
        for path in self.keeper.arrived():
            self.events.fire("ft_checkpoint_saved", path=path)

    def kept(self) -> dict[str, Any]:
        """What result.json says beside the outcome."""
        return {
            "artifact_step": self.artifact_step,
            "bad_steps": [asdict(bad) for bad in self.record.bad_steps],
            "resumed": [asdict(one) for one in self.record.resumed],
            "checkpoints": {"saved": self.keeper.saved, "stalled_seconds": round(self.keeper.stalled, 6)},
        }

    def say_what_was_saved(self) -> None:
        """Name the newest checkpoint that is in its place."""
        folder = self.keeper.keeping.folder
        names = newest_first(path.name for path in folder.iterdir()) if folder.is_dir() else []
        if names:
            run = self.job.context.folder
            self.say(f"the newest checkpoint that could be written is {names[0]}; go on from it with: ft resume {run}")

    def what_is_kept(self, artifact: Path | None) -> str:
        """One clause for a run that was interrupted."""
        if not self.progress.step:
            return "no step was done, nothing is kept"
        if artifact is None:
            return f"what was saved before is in {self.job.context.folder}"
        return f"what was trained is in {artifact}; go on with: ft resume {self.job.context.folder}"
