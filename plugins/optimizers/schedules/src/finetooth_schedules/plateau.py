"""Lower the rate when a metric stops improving."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from finetooth_hooks import Context, RecipeError
from pydantic import Field, model_validator

from finetooth_schedules.warmup import WarmupOptions, warmup_steps

MEASURED = "eval/"
"""Name prefix of evaluations' metrics."""


class PlateauOptions(WarmupOptions):
    """Options of `reduce_on_plateau`."""

    metric: str = "loss"
    """The metric that must improve: `loss` (the training loss of every step), or one of an evaluation, such as
    `eval/loss`. A metric that nothing measures is refused."""
    mode: Literal["min", "max"] | None = None
    """Whether lower (`min`) or higher (`max`) is better. Default: `min` for a loss or a perplexity; required for other
    metrics."""
    patience: int = Field(default=20, ge=0)
    """Measurements without an improvement before the learning rate drops."""
    drop: float = Field(default=0.5, gt=0, lt=1)
    """Factor of the learning rate at a drop."""
    threshold: float = Field(default=1e-4, ge=0, lt=1)
    """Smallest improvement that counts, as a share of the best value so far."""
    cooldown: int = Field(default=0, ge=0)
    """Measurements after a drop that do not count towards `patience`."""
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    """Lowest learning rate, as a share of the full one."""

    @model_validator(mode="after")
    def _says_which_way(self) -> PlateauOptions:
        if self.mode is None and not self.metric.endswith(("loss", "perplexity")):
            raise ValueError(f"mode is not set, and {self.metric} is not a loss: set mode: max if higher is better")
        return self


class PlateauSchedule:
    """`protocols.Schedule` with a state: best value, observations without an improvement, cooldown left, rate.

    The rule is that of torch's ReduceLROnPlateau with a relative threshold. A value that is not finite never
    counts as an improvement. The warm-up's own updates are not observed.
    """

    def __init__(self, options: PlateauOptions) -> None:
        self.options = options
        self.best: float | None = None
        self.bad = 0
        self.cooldown = 0
        self.ratio = 1.0
        self.warming = False

    def factor(self, step: int, total: int | None) -> float:
        """The warm-up's factor, then the rate reached."""
        warmup = warmup_steps(self.options, total)
        self.warming = step < warmup
        return (step + 1) / warmup if self.warming else self.ratio

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Count the metric, if it is among `metrics`.

        Raises:
            RecipeError: the metric is neither an evaluation's nor in the step's report.
        """
        value = metrics.get(self.options.metric)
        if value is None and "loss" in metrics and not self.options.metric.startswith(MEASURED):
            raise RecipeError(
                "schedule.metric",
                f"steps measure no {self.options.metric}; there are: {', '.join(sorted(metrics))}",
                action=f"name one of them, or an evaluation's with {MEASURED} before it, such as {MEASURED}loss",
            )
        if value is None or self.warming:
            return
        if self._improves(value):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.cooldown > 0:
            self.cooldown, self.bad = self.cooldown - 1, 0
        if self.bad > self.options.patience:
            self.ratio = max(self.options.min_ratio, self.ratio * self.options.drop)
            self.cooldown, self.bad = self.options.cooldown, 0

    def _improves(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        margin = self.options.threshold * abs(self.best)
        return value > self.best + margin if self.options.mode == "max" else value < self.best - margin

    def state(self) -> Mapping[str, Any]:
        """JSON-able."""
        return {
            "best": self.best,
            "bad": self.bad,
            "cooldown": self.cooldown,
            "ratio": self.ratio,
            "warming": self.warming,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from `state`."""
        self.best = state["best"]
        self.bad, self.cooldown = int(state["bad"]), int(state["cooldown"])
        self.ratio, self.warming = float(state["ratio"]), bool(state["warming"])


def build(options: PlateauOptions, context: Context) -> PlateauSchedule:
    """Builder of the schedule `reduce_on_plateau`."""
    if options.metric.startswith(MEASURED):
        context.wait_for(options.metric, setting="schedule.metric")
    return PlateauSchedule(options)
