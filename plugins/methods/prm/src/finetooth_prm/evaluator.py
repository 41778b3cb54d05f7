"""The evaluator `steps`, which measures the judgement of held-out steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from finetooth_hooks import Context, DataReport, Datum, Engine, EngineError, Evaluation, Options
from finetooth_hooks.bases import EvaluatorBase
from finetooth_hooks.data.preparation import Limit, Rendering
from finetooth_methods.intervals import bootstrap, calibration_error
from numpy.typing import NDArray
from pydantic import Field

from finetooth_prm.rendering import LabelledSteps

Answer = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Values and labels of the steps of one answer."""


class StepsOptions(Options):
    """Options of the evaluator `steps`."""

    separator: str | None = Field(default=None, min_length=1)
    """Text after each step. Default: that of method `prm`, or a line feed."""
    rows: int | None = Field(default=None, ge=1)
    """Use only this many rows, the first ones. Left out, all."""
    unusable: Literal["raise", "drop"] = "drop"
    """What happens to unusable rows: `raise` names them and stops, `drop` leaves them out and counts them."""


class StepsEvaluator(EvaluatorBase):
    """A `protocols.Evaluator`: a step counts as right if its value is above 0. The accuracy is balanced, the mean over
    right and wrong steps, since most steps are right; its interval resamples whole answers."""

    metrics = frozenset({
        "balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high", "accuracy", "accuracy_right",
        "accuracy_wrong", "calibration_error",
    })  # fmt: skip

    def __init__(self, options: StepsOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._data: Sequence[Datum] = ()

    def prepare(self) -> DataReport:
        """Render the held-out rows.

        Raises:
            RecipeError: the recipe has no held-out rows.
            DataError: a row is broken, or no row is usable.
        """
        options = {"separator": self._separator(), "train_on": "all", "unusable": self._options.unusable}
        limit = Limit(self._context.train.max_length, "drop")
        preparation = self._context.prepare(
            "eval", Rendering("finetooth_prm.rendering:build", options), limit, first=self._options.rows
        )
        self._data, report = LabelledSteps(preparation.data), preparation.report
        if report.rows == self._options.rows:
            report = replace(report, notes=(*report.notes, f"evaluator steps uses the first {report.rows} rows"))
        return report

    def _separator(self) -> str:
        """The separator of the recipe's method."""
        if self._options.separator is not None:
            return self._options.separator
        return str(self._context.options.get("method", {}).get("separator", "\n"))

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """Measure how well values separate right steps from wrong ones.

        Raises:
            EngineError: a value is not finite; names the row.
        """
        if not self._data:
            self.prepare()
        outputs = engine.forward(self._data, returns=("values",), train=False).outputs
        answers: list[Answer] = []
        for datum, each in zip(self._data, outputs, strict=True):
            values = np.asarray(each["values"], dtype=np.float64)[datum.mask]
            if not np.isfinite(values).all():
                raise EngineError(
                    f"evaluator steps: {datum.id} has a value that is not finite",
                    action="train in another precision or at a lower learning rate",
                )
            answers.append((values, np.asarray(datum.fields["labels"], np.float32)[datum.mask] > 0.5))
        metrics = step_metrics(answers, self._context.generator("evaluator", "steps"))
        right = np.concatenate([labels for _, labels in answers])
        baselines = {"always one answer": 0.5 if 0 < right.mean() < 1 else 1.0}
        return Evaluation("steps", step, metrics, baselines, rows=len(answers))


def step_metrics(answers: Sequence[Answer], random: np.random.Generator) -> dict[str, float]:
    """`balanced_accuracy` with `balanced_accuracy_low` and `_high` (95 %), `accuracy`, `accuracy_right` and
    `accuracy_wrong` if such steps exist, and `calibration_error` of the probability that a step is right."""
    values, labels = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    called = values > 0
    low, high = bootstrap(answers, balanced_accuracy, random)
    metrics = {
        "balanced_accuracy": balanced_accuracy(answers), "balanced_accuracy_low": low, "balanced_accuracy_high": high,
        "accuracy": float((called == labels).mean()),
    }  # fmt: skip
    if labels.any():
        metrics["accuracy_right"] = float(called[labels].mean())
    if not labels.all():
        metrics["accuracy_wrong"] = float(1 - called[~labels].mean())
    metrics["calibration_error"] = calibration_error(1 / (1 + np.exp(-values)), labels)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def balanced_accuracy(answers: Sequence[Answer]) -> float:
    """The mean of the accuracies of right and of wrong steps; or that of the only kind."""
    values, labels = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    called = values > 0
    parts = [float((called[labels == kind] == kind).mean()) for kind in (True, False) if (labels == kind).any()]
    return sum(parts) / len(parts)
