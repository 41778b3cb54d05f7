"""Whether the numbers of a run that learns from preferences are in their healthy range, and what it usually means if
they are not.

| metric | healthy | told when |
|---|---|---|
| `rewards/accuracies` | above 0.5, rising to 0.7 and more | its mean over 50 steps is below 0.55 |
| `rewards/margins` | above 0 and rising | its mean over 10 steps is above 20 |
| `logps/chosen` | falls little | its mean over 10 steps is below twice that of the first 10, and 20 nats below |
| gradient norm | 0.01 to 10 | it is above 100 |
"""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import fmean

from finetooth_hooks.context import Context
from finetooth_hooks.reports import StepReport

LONG, SHORT = 50, 10
"""Steps that a mean is taken over."""
STUCK, EXPLODED, COLLAPSED, STEEP = 0.55, 20.0, 20.0, 100.0


class Health:
    """Watches the steps of a run; tells each thing once.

    Args:
        context: gets the notes.
        calmer: a change that makes margins smaller, for the advice.
    """

    def __init__(
        self, context: Context, *, calmer: str = "train fewer epochs, raise the loss's beta, or choose the loss ipo"
    ) -> None:
        self._context, self._calmer = context, calmer
        self._seen: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LONG))
        self._first: float | None = None

    def watch(self, report: StepReport) -> None:
        """Look at a step."""
        for name, value in report.metrics.items():
            self._seen[name].append(value)
        self._accuracies(report.step)
        self._margins(report.step)
        self._check_chosen(report.step)
        if report.grad_norm > STEEP:
            self._tell(
                "grad_norm",
                f"step {report.step}: the gradient norm is {report.grad_norm:.3g}, and 0.01 to 10 is healthy; lower "
                "optimizer.learning_rate",
            )

    def _mean(self, name: str, steps: int) -> float | None:
        """Over the last steps; None if there were fewer."""
        values = self._seen[name]
        return None if len(values) < steps else fmean(list(values)[-steps:])

    def _accuracies(self, step: int) -> None:
        mean = self._mean("rewards/accuracies", LONG)
        if mean is not None and mean < STUCK:
            self._tell(
                "rewards/accuracies",
                f"step {step}: the chosen answer had the higher reward in {mean:.0%} of the pairs of the last {LONG} "
                "steps, which is chance; raise optimizer.learning_rate, or look whether the columns are swapped",
            )

    def _margins(self, step: int) -> None:
        mean = self._mean("rewards/margins", SHORT)
        if mean is not None and mean > EXPLODED:
            self._tell(
                "rewards/margins",
                f"step {step}: rewards of chosen and rejected answers are {mean:.3g} apart, so the pairs teach nothing "
                f"more; {self._calmer}",
            )

    def _check_chosen(self, step: int) -> None:
        mean = self._mean("logps/chosen", SHORT)
        if mean is None:
            return
        if self._first is None:
            self._first = mean
        if mean < 2 * self._first and mean < self._first - COLLAPSED:
            self._tell(
                "logps/chosen",
                f"step {step}: chosen answers lost likelihood, from {self._first:.4g} to {mean:.4g} nats; add the loss "
                "sft to this one, raise the loss's beta, or lower optimizer.learning_rate",
            )

    def _tell(self, topic: str, text: str) -> None:
        self._context.note(text, topic=f"health of {topic}")
