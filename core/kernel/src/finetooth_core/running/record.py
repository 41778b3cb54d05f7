"""What a run has reported so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetooth_hooks.reports import Evaluation, StepReport
from finetooth_saving.history import History
from finetooth_saving.run_state import BadStep, Resumed


@dataclass
class Record:
    """What a run has reported so far.

    Attributes:
        history: every report.
        best: the best value of each evaluation metric.
        bad_steps, resumed: see `RunState`.
    """

    history: History = field(default_factory=History)
    best: dict[str, float] = field(default_factory=dict)
    bad_steps: list[BadStep] = field(default_factory=list)
    resumed: list[Resumed] = field(default_factory=list)

    @property
    def evaluations(self) -> list[Evaluation]:
        """In the order in which they came."""
        return [report for report in self.history.reports if isinstance(report, Evaluation)]

    def measured(self, step: int) -> dict[str, float]:
        """What evaluations found after a step, as `eval/NAME`."""
        at = (report for report in self.evaluations if report.step == step)
        return {f"eval/{name}": value for report in at for name, value in report.metrics.items()}

    @property
    def steps(self) -> list[StepReport]:
        """In the order in which they came."""
        return [report for report in self.history.reports if isinstance(report, StepReport)]

    @property
    def losses(self) -> list[float]:
        """By step."""
        return [report.loss for report in self.steps]
