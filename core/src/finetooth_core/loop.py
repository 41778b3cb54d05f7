"""The run loop: one optimizer step after the other, and between two steps everything else.

Read `Loop.run` top to bottom: it is a run. The method yields steps (`Loop.steps`); trackers and event hooks are told;
evaluations
and checkpoints happen when they are due. However the run ends, what was trained is kept, `ft_run_end` fires, and
result.json says how it went.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from finetooth_hooks.engine import OBSERVERS_SPAN, STEP_SPAN, Engine, Metered, Usage
from finetooth_hooks.errors import EngineError, FinetoothError, StopRun
from finetooth_hooks.protocols import Method
from finetooth_hooks.reports import Evaluation, Outcome, StepReport

from finetooth_core.artifact import write_folder, write_json
from finetooth_core.events import Events, Progress, RunView
from finetooth_core.plan import Job
from finetooth_core.recording import Recorder


@dataclass
class Record:
    """What a run has reported so far."""

    losses: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """Why the steps ended."""

    status: Literal["done", "stopped", "interrupted", "failed"] = "done"
    reason: str = ""
    exit_code: int = 0
    error: Exception | None = None

    def stopped(self, stop: StopRun) -> Ending:
        """The ending after a plugin asked to stop: a run that failed or was interrupted stays that."""
        return Ending("stopped", stop.reason, stop.exit_code) if self.status in ("done", "stopped") else self


@dataclass
class Interrupt:
    """Set by Ctrl-C or SIGTERM; the loop looks at it between two steps.

    Attributes:
        signal: the first one that came, 0 for none.
        keeping: the steps are over and what was trained is being saved: no signal breaks that off.
    """

    signal: int = 0
    keeping: bool = False


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
        record: losses and evaluations so far.
        interrupt: set by a signal.
        evaluated_at: the step of the last whole evaluation.
        saved_at: the step of the last checkpoint.
    """

    job: Job
    method: Method
    engine: Engine
    events: Events
    progress: Progress
    manifest: Mapping[str, Any]
    say: Callable[[str], None]
    record: Record = field(default_factory=Record)
    interrupt: Interrupt = field(default_factory=Interrupt)
    evaluated_at: int = -1
    saved_at: int = 0

    def __post_init__(self) -> None:
        self.view = RunView(self.progress, None, {})
        self.meter = Meter(self.engine)
        profile, folder = self.job.context.recipe.profile, self.job.context.folder
        self.recorder = Recorder(self.engine, profile.start, profile.steps, folder, self.say)
        self.cursor: Mapping[str, Any] = {}

    def run(self) -> Outcome:
        """Train, keep what was trained, and report how it ended.

        Raises:
            FinetoothError: the run failed; result.json says so already.
        """
        started = time.perf_counter()
        with interrupts(self.interrupt):
            try:
                ending = self.steps()
            except StopRun as stop:
                ending = Ending("stopped", stop.reason, stop.exit_code)
            except KeyboardInterrupt:
                ending = Ending("interrupted", "interrupted twice; the step under way was dropped", 130)
            except Exception as error:
                ending = failed(error)
            self.interrupt.keeping = True
            self.recorder.close(self.progress.step)
            artifact, ending = self.keep(ending)
            ending = self.end(ending, artifact, started)
            outcome = self.outcome(ending, artifact, started)
            write_json(self.job.context.folder / "result.json", result(outcome, self.manifest))
        if ending.error is not None:
            raise ending.error
        if outcome.status == "interrupted":
            kept = f"what was trained is in {artifact}" if artifact else "no step was done, nothing is kept"
            self.say(f"{outcome.reason}: {kept}")
        return outcome

    def outcome(self, ending: Ending, artifact: Path | None, started: float) -> Outcome:
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
            seconds=time.perf_counter() - started,
        )

    def steps(self) -> Ending:
        """Every step of the method, and what is due between two of them. An interrupt is looked at wherever something
        long has ended."""
        recipe = self.job.context.recipe
        for tracker in self.job.trackers:
            tracker.start(self.view)
        self.events.fire("ft_run_start")
        if recipe.evaluate.before:
            self.evaluate()
        steps = self.method.steps(self.engine)
        self.recorder.before(self.progress.step + 1)
        clock = time.perf_counter()
        while not self.interrupt.signal:
            with self.recorder.span(STEP_SPAN):
                report = next(steps, None)
            if report is None:
                break
            report = self.meter.measured(report, time.perf_counter() - clock)
            self.cursor = self.method.state()  # a step that fails has moved it already
            with self.recorder.span(OBSERVERS_SPAN):
                self.tell(report)
            self.recorder.after(report.step)
            if recipe.evaluate.every and report.step % recipe.evaluate.every == 0:
                self.evaluate()
            if recipe.checkpoint.every and report.step % recipe.checkpoint.every == 0:
                self.save_checkpoint()
            self.recorder.before(report.step + 1)
            clock = time.perf_counter()
        if self.evaluated_at != self.progress.step:
            self.evaluate()
        if self.interrupt.signal:
            name = signal.Signals(self.interrupt.signal).name
            return Ending("interrupted", f"{name} after step {self.progress.step}", 128 + self.interrupt.signal)
        return Ending()

    def tell(self, report: StepReport) -> None:
        """Record a step and tell trackers and plugins."""
        self.progress.step = report.step
        self.progress.metrics |= {"loss": report.loss, **report.metrics}
        self.record.losses.append(report.loss)
        for tracker in self.job.trackers:
            tracker.step(self.view, report)
        self.events.fire("ft_step", report=report)

    def evaluate(self) -> None:
        """Run every evaluator; metrics are recorded as `eval/NAME`, the best value of each evaluator's first one is
        kept."""
        for evaluator in self.job.evaluators:
            if self.interrupt.signal:
                return
            evaluation = evaluator.evaluate(self.engine, self.progress.step)
            self.remember(evaluation)
            for tracker in self.job.trackers:
                tracker.evaluated(self.view, evaluation)
            self.events.fire("ft_evaluated", evaluation=evaluation)
        self.evaluated_at = self.progress.step

    def remember(self, evaluation: Evaluation) -> None:
        """Keep an evaluation, its metrics, and the best value of its first metric."""
        self.record.evaluations.append(evaluation)
        metrics = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        self.progress.metrics |= metrics
        self.job.request.schedule.observe(metrics)  # for a schedule that watches an evaluation
        first = next(iter(evaluation.metrics), None)
        if first is not None and math.isfinite(evaluation.metrics[first]):
            name, value = f"eval/{first}", evaluation.metrics[first]
            better = max if evaluation.higher_is_better else min
            self.record.best[name] = better(value, self.record.best.get(name, value))

    def keep(self, ending: Ending) -> tuple[Path | None, Ending]:
        """Save the artifact, however the steps ended: a failed step has not touched the weights."""
        if not self.progress.step:
            return None, ending
        target = self.job.context.folder / "artifact"
        try:
            self.save_artifact(target)
        except StopRun as stop:  # raised by a hook that was told of the artifact: it is in place
            return target, ending.stopped(stop)
        except Exception as error:
            if ending.error is not None:
                self.say(f"what was trained could not be saved: {error}")
            kept = target if target.exists() else None
            return kept, ending if ending.error else failed(error)
        if isinstance(ending.error, EngineError):
            self.keep_state()
        return target, ending

    def keep_state(self) -> None:
        """After a step that failed: a checkpoint of the last whole one, so that nothing is lost."""
        try:
            if self.saved_at != self.progress.step:
                self.save_checkpoint()
        except StopRun:
            pass  # raised by a hook that was told of the checkpoint: it is in place
        except Exception as error:
            self.say(f"the state after step {self.progress.step} could not be saved: {error}")
            return
        self.say(f"the state after step {self.progress.step}, the last whole one, is in {self.checkpoint_folder}")

    def end(self, ending: Ending, artifact: Path | None, started: float) -> Ending:
        """Tell trackers and plugins. Whatever they raise, result.json is written; a StopRun still sets the exit code of
        a run that was done."""
        for tracker in self.job.trackers:
            try:
                tracker.end(self.view, self.outcome(ending, artifact, started))
            except Exception as error:
                ending = ending if ending.error else failed(error)
        try:
            self.events.fire("ft_run_end", outcome=self.outcome(ending, artifact, started))
        except StopRun as stop:
            return ending.stopped(stop)
        except FinetoothError as error:
            return ending if ending.error else failed(error)
        return ending

    def save_artifact(self, target: Path) -> None:
        """What was trained, in the layout that other tools load."""
        about = {**self.manifest, "step": self.progress.step, "kind": "artifact"}
        write_folder(target, self.engine.export, about)
        self.events.fire("ft_checkpoint_saved", path=target)

    @property
    def checkpoint_folder(self) -> Path:
        """Where the state after the last whole step belongs."""
        return self.job.context.folder / "checkpoints" / f"step-{self.progress.step}"

    def save_checkpoint(self) -> Path:
        """Engine, method and plugin state together, as they were after the last whole step."""

        def fill(folder: Path) -> None:
            self.engine.save(folder / "engine")
            state = {"step": self.progress.step, "method": self.cursor, "plugins": self.events.state()}
            write_json(folder / "state.json", state, strict=True)

        about = {**self.manifest, "step": self.progress.step, "kind": "checkpoint"}
        path = write_folder(self.checkpoint_folder, fill, about)
        self.saved_at = self.progress.step
        self.events.fire("ft_checkpoint_saved", path=path)
        return path


def failed(error: Exception) -> Ending:
    """The ending for an exception."""
    if isinstance(error, FinetoothError):
        return Ending("failed", str(error), error.exit_code, error)
    return Ending("failed", f"{type(error).__name__}: {error}", 1, error)


class Meter:
    """Adds to a step's report what only the loop knows: time, rates, memory.

    Args:
        engine: asked after every step.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._metered = engine if isinstance(engine, Metered) else None
        self._peak_flops: float | None = None

    def measured(self, report: StepReport, seconds: float) -> StepReport:
        """The report of a step that took so many seconds."""
        seconds = max(seconds, 1e-9)
        if self._metered is None:
            peak = self._engine.peak_memory()
            usage, most = Usage(memory=0, peak_memory=peak), 0.0
        else:
            usage, most = self._metered.usage(), self._most(report)
        rate = report.flops / seconds
        most = max(most, rate) if most else 0.0  # a peak measured on a busy machine may be less than what a step does
        return replace(
            report,
            seconds=seconds,
            tokens_per_second=report.tokens / seconds,
            memory=usage.peak_memory,
            memory_now=usage.memory,
            flops_per_second=rate,
            mfu=rate / most if most else 0.0,
            metrics={**report.metrics, **usage.metrics},
        )

    def _most(self, report: StepReport) -> float:
        """What the device can do, asked for once, and only when it will be needed: it may have to be measured."""
        if self._peak_flops is None and report.flops and self._metered is not None:
            self._peak_flops = self._metered.peak_flops()
        return self._peak_flops or 0.0


def result(outcome: Outcome, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The content of result.json; a number that is not finite becomes null, since JSON has none."""
    content = asdict(outcome)
    content["artifact"] = outcome.artifact.name if outcome.artifact else None
    for group in ("metrics", "best"):
        content[group] = {k: v if math.isfinite(v) else None for k, v in content[group].items()}
    return {**content, **manifest}


@contextmanager
def interrupts(interrupt: Interrupt) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets the step under way finish; the second raises KeyboardInterrupt at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.keeping:
            return
        if interrupt.signal:
            raise KeyboardInterrupt
        interrupt.signal = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
