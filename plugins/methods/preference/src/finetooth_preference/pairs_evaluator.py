"""The evaluator `pairs`: how often the chosen answer of a held-out pair has the higher reward."""

from __future__ import annotations

import numpy as np
from finetooth_hooks import DataReport, Engine, Evaluation
from finetooth_hooks.context import Context
from finetooth_methods.intervals import wilson

from finetooth_preference.pair_data import PairData, report_of
from finetooth_preference.scoring import RewardsEvaluator, ScoreOptions


class PairsOptions(ScoreOptions):
    """Options of `pairs`."""


def build(options: PairsOptions, context: Context) -> PairsEvaluator:
    return PairsEvaluator(options, context)


class PairsEvaluator(RewardsEvaluator):
    """`rewards/accuracies` with its 95 % interval, and a baseline from the lengths of the answers. Ties count half:
    before the first step every reward is 0."""

    metrics = frozenset({
        "rewards/accuracies", "rewards/accuracies_low", "rewards/accuracies_high", "rewards/margins",
        "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected",
    })  # fmt: skip

    def prepare(self) -> DataReport:
        """Render the held-out pairs.

        Raises:
            DataError: a row is broken, or not a pair.
        """
        preparation = self._rendered("pairs", {"margins": False})
        pairs = PairData(preparation.data)
        self._data = pairs.flat()
        return report_of(preparation.report, len(pairs))

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """Measure how often the chosen answer has the higher implicit reward.

        Raises:
            EngineError: a log-probability is not finite.
        """
        rewards, sums = self._rewards.of(engine, self._prepared())
        chosen, rejected = rewards[0::2], rewards[1::2]
        count = len(chosen)
        ahead = float(((chosen > rejected) + 0.5 * (chosen == rejected)).sum())
        low, high = wilson(ahead / count, count)
        lengths = np.array([int(datum.mask.sum()) for datum in self._data])
        longer = float(((lengths[0::2] > lengths[1::2]) + 0.5 * (lengths[0::2] == lengths[1::2])).mean())
        return Evaluation(
            name="pairs",
            step=step,
            metrics={
                "rewards/accuracies": ahead / count,
                "rewards/accuracies_low": low,
                "rewards/accuracies_high": high,
                "rewards/margins": float((chosen - rejected).mean()),
                "rewards/chosen": float(chosen.mean()),
                "rewards/rejected": float(rejected.mean()),
                "logps/chosen": float(sums[0::2].mean()),
                "logps/rejected": float(sums[1::2].mean()),
            },
            baselines={"longer answer": longer, "shorter answer": 1 - longer},
            rows=count,
        )
