"""Ends a run whose evaluations show that it no longer improves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from finetooth_hooks.options import Options
from finetooth_hooks.reports import Evaluation
from finetooth_recipes import cadence
from finetooth_recipes.problems import INVALID
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from finetooth_saving.retention import MEASURED, is_better, mode_of

SETTING = "train.early_stopping"


def _measured(value: Any) -> Any:
    if not str(value).startswith(MEASURED):
        raise PydanticCustomError(
            INVALID,
            "{problem}",
            {"problem": f"it needs a metric of evaluations, and {value} is not one", "action": "name one, eval/loss"},
        )
    return value


class EarlyStopping(Options):
    """Conditions for the end of a run before its last step."""

    metric: Annotated[str, AfterValidator(_measured)] = "eval/loss"
    """The evaluation metric that must improve."""
    patience: int = Field(default=3, ge=1)
    """The run ends after this many evaluations in a row that do not improve on the best one."""
    min_delta: float = Field(default=0.0, ge=0)
    """Smallest change that counts as an improvement."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether lower (`min`) or higher (`max`) is better; `auto` depends on the name, as in `checkpoint.keep_best`."""

    def verdict(self, evaluations: Iterable[Evaluation]) -> str | None:
        """The reason why the run ends, in one line; None if it continues.

        The verdict depends only on the evaluations, which every checkpoint contains: a resumed run stops at the same
        step as an uninterrupted one. A value that is not finite never improves.

        Args:
            evaluations: all evaluations of the run, in order.
        """
        mode = mode_of(self.metric) if self.mode == "auto" else self.mode
        best, at, waited = math.nan, 0, 0
        for evaluation in evaluations:
            values = {f"{MEASURED}{name}": value for name, value in evaluation.metrics.items()}
            if self.metric not in values:
                continue
            value = values[self.metric]
            needed = best - self.min_delta if mode == "min" else best + self.min_delta
            if math.isfinite(value) and (math.isnan(best) or is_better(value, needed, mode)):
                best, at, waited = value, evaluation.step, 0
            else:
                waited += 1
        if waited < self.patience:
            return None
        since = "nothing finite was measured" if math.isnan(best) else f"{best:.4g} after step {at} is the best"
        return f"{SETTING}: {waited} evaluations in a row without a better {self.metric}; {since}"


def check_watched(stopping: EarlyStopping | None, every: int | str) -> None:
    """Checks that early stopping has evaluations to watch.

    Args:
        every: `evaluate.every`.

    Raises:
        PydanticCustomError: the recipe has no evaluation before the end of the run.
    """
    if stopping is not None and not cadence.parse(every):
        context = {"problem": f"{SETTING} needs evaluations to watch", "action": "add evaluate.every, such as 50"}
        raise PydanticCustomError(INVALID, "{problem}", context)
