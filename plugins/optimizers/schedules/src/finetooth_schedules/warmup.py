"""The warm-up of all schedules."""

from __future__ import annotations

import math
from typing import Any

from finetooth_hooks import Options, RecipeError
from pydantic import Field, model_validator


class WarmupOptions(Options):
    """Options every schedule takes."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps until the full learning rate; the first of w steps has 1/w of it, none has 0."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """The same as a share of all steps, rounded up. Not together with `warmup_steps`."""

    @model_validator(mode="before")
    @classmethod
    def _steps_replace_the_default(cls, values: Any) -> Any:
        """Steps in the recipe replace a schedule's default ratio."""
        if isinstance(values, dict) and values.get("warmup_steps") is not None and "warmup_ratio" not in values:
            return {**values, "warmup_ratio": None}
        return values

    @model_validator(mode="after")
    def _one_of_them(self) -> WarmupOptions:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("give warmup_steps or warmup_ratio, not both")
        return self


def needed_total(total: int | None, name: str) -> int:
    """`total`, which the schedule or the ratio called `name` needs.

    Raises:
        RecipeError: the number of steps is unknown.
    """
    if total is None:
        raise RecipeError(
            "train.max_steps", f"{name} needs to know how many steps the run has", action="set train.max_steps"
        )
    return total


def warmup_steps(options: WarmupOptions, total: int | None) -> int:
    """Updates of the warm-up.

    Raises:
        RecipeError: the warm-up is longer than the run, or a share of an unknown total.
    """
    if options.warmup_steps is None:
        if not options.warmup_ratio:
            return 0
        return math.ceil(options.warmup_ratio * needed_total(total, "schedule.warmup_ratio") - 1e-9)
    if total is not None and options.warmup_steps > total:
        raise RecipeError(
            "schedule.warmup_steps",
            f"{options.warmup_steps} warm-up steps, but the run has {total}",
            action="lower it, or use schedule.warmup_ratio",
        )
    return options.warmup_steps
