"""Rewards of held-out answers, for both evaluators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from finetooth_hooks import DataReport, Datum, Engine, EngineError, Options
from finetooth_hooks.bases import EvaluatorBase
from finetooth_hooks.context import Context
from finetooth_hooks.data.preparation import Limit, Preparation, Rendering
from numpy.typing import NDArray
from pydantic import Field

from finetooth_preference.precomputed import FIELD, ReferenceLogprobs, reference_numbers

Score = Literal["reward", "sum", "mean"]
BY_METHOD: Mapping[str, Score] = {"orpo": "mean", "simpo": "mean", "cpo": "sum"}


class ScoreOptions(Options):
    """Options of the evaluators."""

    score: Score | Literal["auto"] = "auto"
    """An answer's reward: `reward` is beta times its log-probability minus the reference's, `sum` its log-probability,
    `mean` that divided by its length. `auto` is the score that the run's method compares, or `mean` for a method
    without preferences."""
    rows: int | None = Field(default=None, ge=1)
    """Measure only this many rows, the first ones. Left out, all."""


class Rewards:
    """Scores answers as the run's method does."""

    def __init__(self, options: ScoreOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._known: ReferenceLogprobs | None = None

    def of(self, engine: Engine, data: Sequence[Datum]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Computes the implicit reward of each answer.

        Returns:
            Rewards and sums of log-probabilities, (S,) each.

        Raises:
            EngineError: a log-probability is not finite, or the reference's is unknown.
        """
        sums = _sums(engine, data, "policy")
        score, beta = self._chosen()
        if score == "reward":
            return beta * (sums - self._reference(engine, data)), sums
        lengths = np.array([int(datum.mask.sum()) for datum in data])
        return (sums / lengths if score == "mean" else sums), sums

    def read_beginning(self, engine: Engine, data: Sequence[Datum]) -> None:
        """Compute the reference's numbers, if the reference is the policy before its first step."""
        precomputed = self._is_precomputed() or "reference" not in engine.capabilities
        if self._chosen()[0] == "reward" and precomputed and self._known is None:
            self._known = reference_numbers(self._context, engine, data)

    def _reference(self, engine: Engine, data: Sequence[Datum]) -> NDArray[np.float64]:
        if "reference" in engine.capabilities and not self._is_precomputed():
            return _sums(engine, data, "reference")
        if self._known is None:
            self._known = reference_numbers(self._context, engine, data)
        known = (self._known.add(place, datum).fields[FIELD] for place, datum in enumerate(data))
        return np.array([float(values.sum(dtype=np.float64)) for values in known])

    def _method(self) -> tuple[str, Mapping[str, Any]]:
        """Name and options of the run's method."""
        plan = self._context.plan
        if plan is None:
            return "", {}
        return plan.picks.get("method", "").rpartition(":")[2], plan.options.get("method", {})

    def _is_precomputed(self) -> bool:
        reference = self._method()[1].get("reference")
        return isinstance(reference, Mapping) and reference.get("policy") == "precomputed"

    def _chosen(self) -> tuple[Score, float]:
        name, options = self._method()
        beta = options.get("beta")
        if beta is None:
            picks = [*options.get("losses", ()), options.get("loss")]
            betas = [pick.get("beta") for pick in picks if isinstance(pick, Mapping)]
            beta = next((value for value in betas if value is not None), 0.1)
        if self._options.score != "auto":
            return self._options.score, beta
        return BY_METHOD.get(name, "reward" if "reference" in options else "mean"), beta


class RewardsEvaluator(EvaluatorBase, ABC):
    """Base of evaluators that compare rewards of held-out answers; `prepare` sets the data."""

    def __init__(self, options: ScoreOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._rewards = Rewards(options, context)
        self._data: Sequence[Datum] = ()

    @abstractmethod
    def prepare(self) -> DataReport:
        """See `protocols.Evaluator.prepare`."""

    def read_beginning(self, engine: Engine) -> None:
        """See `protocols.Evaluator.read_beginning`."""
        self._rewards.read_beginning(engine, self._prepared())

    def _prepared(self) -> Sequence[Datum]:
        if not self._data:
            self.prepare()
        return self._data

    def _rendered(self, function: str, options: Mapping[str, Any]) -> Preparation:
        """The held-out rows, rendered by a function of `finetooth_preference.rendering`; broken ones are dropped."""
        rendering = Rendering(f"finetooth_preference.rendering:{function}", {"bad_rows": "drop", **options})
        return self._context.prepare("eval", rendering, Limit.of(self._context.train), first=self._options.rows)


def _sums(engine: Engine, data: Sequence[Datum], role: str) -> NDArray[np.float64]:
    """(S,) log-probability of each answer."""
    sums = np.zeros(len(data))
    for place, (datum, logprobs) in enumerate(zip(data, engine.logprobs(data, role=role), strict=True)):
        sums[place] = logprobs[datum.mask].sum(dtype=np.float64)
        if not np.isfinite(sums[place]):
            raise EngineError(
                f"{datum.id} has a log-probability that is not finite",
                action="train in another precision or at a lower learning rate",
            )
    return sums
