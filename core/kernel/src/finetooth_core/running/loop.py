"""The run loop: one optimizer step after the other, and between two steps everything else.

Read `Loop.run` top to bottom: it is a run. The method yields steps (`Loop.steps`); trackers and event hooks are told;
evaluations and checkpoints happen when they are due. After any ending, the weights are saved, `ft_run_end` fires, and
result.json holds the outcome.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from finetooth_hooks.engine import OBSERVERS_SPAN, STEP_SPAN
from finetooth_hooks.errors import Interrupted, NotFinite, StopRun
from finetooth_hooks.reports import Outcome, StepReport
from finetooth_saving.run_state import random_state, restore_random, seed_random
from finetooth_saving.state_arrays import own_arrays
from finetooth_toolbox import blame
from finetooth_toolbox.cli.working import lend_terminal

from finetooth_core.plugins.events import PluginFailed
from finetooth_core.plugins.suspects import with_suspects
from finetooth_core.running.bad_steps import BadSteps
from finetooth_core.running.evaluations import Evaluations
from finetooth_core.running.finish import Finish
from finetooth_core.running.interrupts import interrupts
from finetooth_core.running.live_run import LiveRun
from finetooth_core.running.meter import Meter
from finetooth_core.running.recording import Recorder
from finetooth_core.running.run_ending import LEFT, Ending, failed


@dataclass
class Loop(LiveRun):
    """Drives one run from its first step to its last; `LiveRun` holds its state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.meter = Meter(self.engine)
        profile, folder = self.job.context.recipe.profile, self.job.context.folder
        self.recorder = Recorder(self.engine, profile.start, profile.steps, folder, self.say)
        self.bad_steps = BadSteps(self)
        self.evaluations = Evaluations(self)
        self.finish = Finish(self)

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
        with interrupts(self.interrupt), lend_terminal():
            if "interrupt" in self.engine.capabilities:
                self.engine.interrupt_when(lambda: self.interrupt.signal != 0)
            try:
                ending = self.steps()
            except StopRun as stop:
                ending = Ending("stopped", stop.reason, stop.exit_code)
            except KeyboardInterrupt:
                ending = LEFT
            except SystemExit as error:  # raised by a plugin or a library: its code would look like success
                what, action = blame.problem(error)
                ending = failed(PluginFailed(what, action=action))
            except Exception as error:
                ending = failed(with_suspects(error, self.job.context))
            if "interrupt" in self.engine.capabilities:
                self.engine.interrupt_when(lambda: False)
            self.recorder.close(self.progress.step)
            left = ending is LEFT
            try:
                if not left:
                    artifact, ending = self.finish.keep(ending)
            except KeyboardInterrupt:
                left, ending = True, replace(LEFT, reason="interrupted twice; the unfinished save was dropped")
            if left:
                self.keeper.leave()
            ending = self.finish.end(ending, artifact)
            outcome = self.outcome(ending, artifact)
            ending = self.finish.write_result(outcome, ending)
        if ending.error is not None:
            raise ending.error
        if outcome.status == "interrupted":
            self.say(f"{outcome.reason}: {self.finish.what_is_kept(artifact)}")
        return outcome

    # --- steps --------------------------------------------------------------------------------------------------------

    def steps(self) -> Ending:
        """Run every step of the method, and everything due between two steps. Interrupts are checked after everything
        that takes long."""
        recipe = self.job.context.recipe
        if self.resumed_from is None:
            seed_random(self.job.context.generator("plugins"))
        self.begin()
        if recipe.evaluate.before and self.progress.step == 0 and self.evaluated_at < 0:
            self.evaluations.evaluate()
            self.check_measured()
        if recipe.train.on_bad_step == "rollback":
            self.keeper.hold(self.engine, self.state())
        when = self.evaluations.clock()
        steps = self.method.steps(self.engine)
        self.recorder.before(self.progress.step + 1)
        clock = time.perf_counter()
        while not self.signal:
            drawn = random_state()
            try:
                with self.recorder.span(STEP_SPAN):
                    report = next(steps, None)
            except NotFinite as error:
                steps = self.bad_steps.go_on_after(error)
                continue
            except Interrupted:
                self.engine.zero_grad()
                restore_random(drawn)  # what a plugin drew in the step that is dropped, it draws again
                break
            if report is None:
                break
            report = self.meter.measured(report, time.perf_counter() - clock)
            self.cursor = own_arrays(self.method.state())  # a step that fails has moved it already
            self.version = self.engine.weights_version
            with self.recorder.span(OBSERVERS_SPAN), self.keeper.alike.stops():
                self.tell(report)
            self.recorder.after(report.step)
            last = report.step == self.progress.total_steps  # evaluated at the end anyway: before it is saved
            if when.due(report.step, report.epoch, time.monotonic()) or last:
                self.evaluations.evaluate()
            if self.keeper.due(report.step, report.epoch):
                self.save_checkpoint()
            self.keeper.alike.later(self.tell_saved)
            self.recorder.before(report.step + 1)
            clock = time.perf_counter()
        if self.evaluated_at != self.progress.step:
            self.evaluations.evaluate()
        if number := self.signal:
            reason = f"{signal.Signals(number).name} after step {self.progress.step}"
            # a rank that ended because of another has not failed
            return Ending("interrupted", reason, 128 + number if self.interrupt.signal else 0)
        return Ending()

    def begin(self) -> None:
        """Tell trackers and plugins that the run begins, or resumes."""
        self.trackers.begin(self.record.history.reports if self.again else None)
        plugins = self.events.state()
        self.events.fire("ft_run_start")
        self.events.restore(plugins)  # what a plugin sets when it starts does not undo what it had
        if self.resumed_from is not None:  # saved before anybody could be told
            self.events.fire("ft_checkpoint_saved", path=self.resumed_from)

    def tell(self, report: StepReport) -> None:
        """Record a step and tell trackers and plugins."""
        self.progress.step, self.epoch = report.step, report.epoch
        rollouts, report = report.rollouts, replace(report, rollouts=())
        self.progress.metrics |= {"loss": report.loss, **report.metrics}
        self.bad_steps.in_a_row = 0
        self.record.history.add(report)
        self.trackers.step(report)
        if rollouts:
            self.events.fire("ft_rollouts_scored", rollouts=rollouts)
        self.events.fire("ft_step", report=report)
