"""The evaluator `labels`: how often a desirable held-out answer has a higher reward than an undesirable one."""

from __future__ import annotations

import numpy as np
from finetooth_hooks import DataError, DataReport, Engine, Evaluation
from finetooth_hooks.context import Context
from numpy.typing import NDArray

from finetooth_preference.scoring import RewardsEvaluator, ScoreOptions


class LabelsOptions(ScoreOptions):
    """Options of `labels`."""


def build(options: LabelsOptions, context: Context) -> LabelsEvaluator:
    return LabelsEvaluator(options, context)


class LabelsEvaluator(RewardsEvaluator):
    """`rewards/auc`: the share of pairs of a desirable and an undesirable answer in the right order; ties count
    half."""

    metrics = frozenset({
        "rewards/auc", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected",
    })  # fmt: skip

    def prepare(self) -> DataReport:
        """Render the held-out answers.

        Raises:
            DataError: a row is broken, or all answers are of one kind.
        """
        preparation = self._rendered("labelled", {})
        self._data = list(preparation.data)
        if len({datum.scalars["label"] for datum in self._data}) < 2:
            raise DataError("data.eval", "all answers have one label", action="add some of the other kind")
        return preparation.report

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """Measure how well implicit rewards separate good answers from bad ones.

        Raises:
            EngineError: a log-probability is not finite.
        """
        rewards, sums = self._rewards.of(engine, self._prepared())
        good = np.array([datum.scalars["label"] > 0.5 for datum in self._data])
        lengths = np.array([float(datum.mask.sum()) for datum in self._data])
        longer = area(lengths, good)
        return Evaluation(
            name="labels",
            step=step,
            metrics={
                "rewards/auc": area(rewards, good),
                "rewards/chosen": float(rewards[good].mean()),
                "rewards/rejected": float(rewards[~good].mean()),
                "rewards/margins": float(rewards[good].mean() - rewards[~good].mean()),
                "logps/chosen": float(sums[good].mean()),
                "logps/rejected": float(sums[~good].mean()),
            },
            baselines={"longer answer": longer, "shorter answer": 1 - longer},
            rows=len(self._data),
        )


def area(values: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    """The share of pairs of a good and another value in which the good one is higher, ties half: the area under the
    ROC curve (Mann and Whitney, 1947)."""
    others = np.sort(values[~good])
    below = np.searchsorted(others, values[good], side="left") + np.searchsorted(others, values[good], side="right")
    return float(below.mean() / 2 / len(others))
