"""Steps whose loss or gradient was not finite."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks.errors import EngineError, NotFinite
from finetooth_hooks.reports import StepReport
from finetooth_saving.run_state import BadStep, as_state
from finetooth_saving.state_arrays import own_arrays

from finetooth_core.running.live_run import LiveRun

BAD_IN_A_ROW = 10
"""After this many consecutive steps that were not finite, the run always stops."""


class BadSteps:
    """Decides how a run continues after a step that was not finite.

    Args:
        run: is changed.

    Attributes:
        in_a_row: since the last good step.
    """

    def __init__(self, run: LiveRun) -> None:
        self.run = run
        self.in_a_row = 0

    def go_on_after(self, error: NotFinite) -> Iterator[StepReport]:
        """Record a step that was not finite, and skip its data, as `train.on_bad_step` says.

        A rollback restores weights and optimizer from the newest snapshot, and data continue after the bad ones (as in
        PaLM, Chowdhery et al., 2022, arXiv:2204.02311, section 5.1): the same data would fail again.

        Raises:
            NotFinite: it is `stop`.
            EngineError: too many in a row.
        """
        policy = self.run.job.context.recipe.train.on_bad_step
        if policy == "stop":
            raise error
        self.in_a_row += 1
        if self.in_a_row > BAD_IN_A_ROW:
            raise EngineError(
                f"{BAD_IN_A_ROW} steps in a row were not finite; the last one: {error.problem}",
                action="lower optimizer.learning_rate, or look at the data; the run stops here",
            ) from error
        step, cursor = self.run.progress.step + 1, own_arrays(self.run.method.state())  # which is behind the bad data
        self.run.engine.zero_grad()
        if policy == "rollback":
            self.roll_back()
        bad = BadStep(step, error.problem, error.rows, policy, self.run.progress.step)
        self.run.record.bad_steps.append(bad)
        self.run.progress.metrics["bad_steps"] = float(len(self.run.record.bad_steps))
        rows = f" (rows {', '.join(error.rows[:3])}{', ...' if len(error.rows) > 3 else ''})" if error.rows else ""
        back = f"; back to step {bad.back_to}" if policy == "rollback" else ""
        self.run.say(f"step {step} is skipped: {error.problem}{rows}{back}")
        self.run.method.restore(own_arrays(cursor))
        self.run.cursor = cursor  # an interrupt after this saves a state after the bad data
        return self.run.method.steps(self.run.engine)

    def roll_back(self) -> None:
        """To the newest snapshot in memory."""
        newest = self.run.keeper.latest_snapshot()
        assert newest is not None  # one was taken before the first step
        self.run.engine.rollback(newest.snapshot)
        bad = self.run.record.bad_steps
        self.run.take(as_state(newest.state))
        self.run.record.bad_steps = bad
        self.run.record.history.cut(newest.step)
        self.run.trackers.go_back(self.run.record.history.reports)
