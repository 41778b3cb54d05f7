"""The evaluator `reward`: how often the better answer of a pair scores higher, or how close scores are to labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from finetooth_hooks import Context, DataError, DataReport, Datum, Engine, EngineError, Evaluation, Options
from finetooth_hooks.bases import EvaluatorBase
from finetooth_hooks.data.preparation import Rendering
from finetooth_methods.intervals import calibration_error, wilson
from numpy.typing import NDArray
from pydantic import Field

from finetooth_reward.rendering import Kind, kind_of

Scores = NDArray[np.float64]
OF_PAIRS = frozenset({"accuracy", "accuracy_low", "accuracy_high", "margin", "reward", "calibration_error"})
OF_LABELS = frozenset({"mse", "correlation"})


class RewardOptions(Options):
    """Options of the evaluator `reward`."""

    rows: int | None = Field(default=None, ge=1)
    """Use only this many rows, the first ones. Left out, all."""
    unusable: Literal["raise", "drop"] = "drop"
    """What happens to rows with an empty answer or two equal answers: `raise` names them and stops, `drop` leaves them
    out and counts them."""


class RewardEvaluator(EvaluatorBase):
    """A `protocols.Evaluator`. For pairs: the share with a higher score of the chosen answer (a tie counts half), its
    95 % interval, and baselines from the length; for labelled answers: the mean squared error."""

    def __init__(self, options: RewardOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._data: Sequence[Datum] = ()
        self._kind: Kind = "pairs"

    @property
    def metrics(self) -> frozenset[str]:
        """See `protocols.Evaluator.metrics`."""
        return OF_LABELS if self._kind == "labels" else OF_PAIRS

    def prepare(self) -> DataReport:
        """Render the held-out rows.

        Raises:
            RecipeError: the recipe has no held-out rows.
            DataError: a row is broken, or no row is usable.
        """
        id_, example = self._context.examples("eval").rows[0]
        try:
            self._kind = kind_of(example)
        except DataError as error:
            raise DataError(id_, error.problem, action=error.action) from error
        options = {
            "kind": self._kind, "unusable": self._options.unusable, "margin": False,
            "max_length": self._context.train.max_length, "excess_length": "drop",
        }  # fmt: skip
        preparation = self._context.prepare(
            "eval", Rendering("finetooth_reward.rendering:build", options), None, first=self._options.rows
        )
        self._data, report = preparation.data, preparation.report
        if not self._data:
            raise DataError("data.eval", "no row can be used", action="raise train.max_length or change the data")
        if report.rows == self._options.rows:
            report = replace(report, notes=(*report.notes, f"evaluator reward uses the first {report.rows} rows"))
        return report

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """Measure how well scores order pairs, or how close they are to labels.

        Raises:
            EngineError: a score is not finite; names the row.
        """
        if not self._data:
            self.prepare()
        outputs = engine.forward(self._data, returns=("scores",), train=False).outputs
        scores = np.array([float(each["scores"]) for each in outputs])
        for datum, score in zip(self._data, scores, strict=True):
            if not math.isfinite(score):
                raise EngineError(
                    f"evaluator reward: the score of {datum.id} is {score}",
                    action="train in another precision or at a lower learning rate",
                )
        if self._kind == "labels":
            labels = np.array([datum.scalars["label"] for datum in self._data])
            metrics = regression_metrics(scores, labels)
            baseline = {"mean of the labels": float(np.mean((labels - labels.mean()) ** 2))}
            return Evaluation("reward", step, metrics, baseline, rows=len(scores), higher_is_better=False)
        lengths = np.array([float(len(datum)) for datum in self._data])
        baselines = length_baselines(lengths[0::2], lengths[1::2])
        return Evaluation("reward", step, pair_metrics(scores[0::2], scores[1::2]), baselines, rows=len(scores) // 2)


def pair_metrics(chosen: Scores, rejected: Scores) -> dict[str, float]:
    """Of P pairs: `accuracy` with `accuracy_low` and `accuracy_high`, mean `margin`, mean `reward`, and
    `calibration_error`: the distance of the model's confidence in its choice, sigmoid(|margin|), from its accuracy."""
    margins = chosen - rejected
    accuracy = shares(margins)
    low, high = wilson(accuracy, len(margins))
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "margin": float(margins.mean()),
        "reward": float(np.concatenate([chosen, rejected]).mean()),
        "calibration_error": calibration_error(confidence, margins > 0),
    }


def shares(margins: Scores) -> float:
    """The share above 0; 0 counts half."""
    return float(np.mean((margins > 0) + 0.5 * (margins == 0)))


def length_baselines(chosen: Scores, rejected: Scores) -> Mapping[str, float]:
    """Accuracies of judges that only compare lengths."""
    return {"longer answer": shares(chosen - rejected), "shorter answer": shares(rejected - chosen)}


def regression_metrics(scores: Scores, labels: Scores) -> dict[str, float]:
    """`mse`, and Pearson's `correlation` if both vary."""
    metrics = {"mse": float(np.mean((scores - labels) ** 2))}
    if scores.std() > 0 and labels.std() > 0:
        metrics["correlation"] = float(np.corrcoef(scores, labels)[0, 1])
    return metrics
