"""Trackers, which record the steps and evaluations of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from finetooth_hooks.reports import Evaluation, Outcome, StepReport
from finetooth_hooks.run import Run


class Tracker(Protocol):
    """Records the steps and evaluations of a run; its methods must be cheap.

    A tracker derives from `finetooth_hooks.TrackerBase`, where `resume` calls `start`.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Its optional abilities: words of `finetooth_hooks.capabilities.TRACKER`."""
        ...

    def start(self, run: Run) -> None: ...

    def resume(self, run: Run, history: Sequence[StepReport | Evaluation]) -> None:
        """Called instead of `start` when a run resumes after `run.step`. With the capability `resume`, a tracker
        deletes its entries of later steps and adds missing ones from `history`, so that it shows every step once; it is
        then also called when a run returns to an earlier step. Without it, `TrackerBase` calls `start`.

        Args:
            history: every report of the run up to and including `run.step`, in order.
        """
        ...

    def step(self, run: Run, report: StepReport) -> None: ...
    def evaluated(self, run: Run, evaluation: Evaluation) -> None: ...
    def end(self, run: Run, outcome: Outcome) -> None: ...
