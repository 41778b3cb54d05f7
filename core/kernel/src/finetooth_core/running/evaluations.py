"""Evaluations of a run: their times, and their effects."""

from __future__ import annotations

import time

from finetooth_hooks.errors import Interrupted, StopRun
from finetooth_hooks.reports import Evaluation, StepReport
from finetooth_recipes import cadence
from finetooth_recipes.cadence import Clock
from finetooth_saving.metric_names import distinct_names

from finetooth_core.running.live_run import LiveRun


class Evaluations:
    """What a run measures between two steps.

    Args:
        run: is evaluated.
    """

    def __init__(self, run: LiveRun) -> None:
        self.run = run

    def clock(self) -> Clock:
        """A clock that tells when to evaluate. If the previous process ended before the evaluation due at its last
        step, it is made now. If it stopped early, the run stops again."""
        run, now = self.run, time.monotonic()
        reports = [report for report in run.record.history.reports if isinstance(report, StepReport)]
        before = reports[-2].epoch if len(reports) > 1 else 0.0
        clock = Clock(cadence.parse(run.job.context.recipe.evaluate.every), now, before, run.keeper.alike.first)
        due = reports and clock.due(run.progress.step, run.epoch, now) and run.evaluated_at != run.progress.step
        (self.evaluate if due else self.stop_early)()
        return clock

    def evaluate(self) -> None:
        """Run every evaluator that has not measured this step yet; metrics are recorded as `eval/NAME`, the best value
        of each evaluator's first one is kept."""
        step = self.run.progress.step
        measured = sum(1 for evaluation in self.run.record.evaluations if evaluation.step == step)
        for evaluator in self.run.job.evaluators[measured:]:
            if self.run.signal:
                return
            try:
                with self.run.engine.averaged():
                    evaluation = evaluator.evaluate(self.run.engine, step)
            except Interrupted:
                return
            evaluation = distinct_names(evaluation, self.run.record.evaluations)
            self.remember(evaluation)
            with self.run.keeper.alike.stops():
                self.run.trackers.evaluated(evaluation)
                self.run.events.fire("ft_evaluated", evaluation=evaluation)
        self.run.evaluated_at = self.run.progress.step
        self.stop_early()

    def stop_early(self) -> None:
        """Ends the run if `train.early_stopping` says so.

        Raises:
            StopRun: no improvement within the patience of `train.early_stopping`, and steps are left.
        """
        stopping = self.run.job.context.recipe.train.early_stopping
        if stopping is None or self.run.progress.step == self.run.progress.total_steps:
            return
        if (reason := stopping.verdict(self.run.record.evaluations)) is not None:
            raise StopRun(reason)

    def remember(self, evaluation: Evaluation) -> None:
        """Keep an evaluation, its metrics, and the best value of its first metric."""
        self.run.record.history.add(evaluation)
        metrics = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        self.run.progress.metrics |= metrics
        self.run.job.request.updates.schedule.observe(metrics)  # for a schedule that watches an evaluation
        for name, value in list(metrics.items())[:1]:
            better = max if evaluation.higher_is_better else min
            self.run.record.best[name] = better(value, self.run.record.best.get(name, value))
