"""What a sweep tries: the section `sweep` of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from finetooth_hooks import Options
from finetooth_hooks.errors import RecipeError
from finetooth_saving.retention import mode_of
from optuna import Trial
from pydantic import Field, ValidationError, model_validator

SPAN = "{low: 1.0e-5, high: 1.0e-3, log: true}"
"""What stands for a setting that is a number."""


class Span(Options):
    """Numbers between two bounds."""

    low: float
    """The least."""
    high: float
    """The greatest."""
    log: bool = False
    """Whether factors count, and not differences: for learning rates."""
    step: float | None = Field(default=None, gt=0)
    """Only the least and so many more; with whole bounds, whole numbers come of it."""

    @model_validator(mode="after")
    def _is_a_span(self) -> Span:
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return self.step is not None and all(float(x).is_integer() for x in (self.low, self.high, self.step))


class Sweep(Options):
    """The section `sweep` of a recipe."""

    metric: str = "eval/loss"
    """What is compared: the best value that a trial's evaluations give."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Which way is better; `auto` goes by the name, as in `checkpoint.keep_best`."""
    trials: int = Field(default=10, ge=1)
    """How many settings are tried in all."""
    space: dict[str, list[Any] | Span] = Field(min_length=1)
    """Settings by their path, each with a list of values, or `low` and `high`."""
    prune: bool = True
    """Whether a trial ends early that is worse than the median of the others at the same evaluation."""
    seed: int = Field(default=0, ge=0)
    """Of the search."""

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """As Optuna says it."""
        return "minimize" if (mode_of(self.metric) if self.mode == "auto" else self.mode) == "min" else "maximize"

    def drawn(self, trial: Trial) -> dict[str, Any]:
        """Settings that a trial tries."""
        settings: dict[str, Any] = {}
        for name, values in self.space.items():
            if isinstance(values, list):
                settings[name] = values[trial.suggest_int(f"{name} (index)", 0, len(values) - 1)]
            elif values.whole:
                step = int(values.step or 1)
                settings[name] = trial.suggest_int(name, int(values.low), int(values.high), step=step)
            else:
                settings[name] = trial.suggest_float(name, values.low, values.high, log=values.log, step=values.step)
        return settings


def read(section: Any) -> Sweep:
    """Reads the recipe's section `sweep`.

    Raises:
        RecipeError: the section is missing, or something in it is wrong.
    """
    if not isinstance(section, dict):
        raise RecipeError(
            "sweep", "the recipe has no such section", action="add sweep: {space: {adapter.rank: [4, 8]}}"
        )
    try:
        made = Sweep.model_validate(section)
    except ValidationError as error:
        errors = error.errors()
        spans = [
            problem for problem in errors if any("Span" in str(part) for part in problem["loc"])
        ]  # of a mapping, what is wrong with it as a span
        first = (spans or errors)[0]
        place = ".".join(str(part) for part in first["loc"] if "Span" not in str(part) and part != "list[any]")
        action = f"write {SPAN}, or a list of values" if place.startswith("space.") else "fix it, or leave it out"
        raise RecipeError(f"sweep.{place}".rstrip("."), first["msg"], action=action) from None
    for name, values in made.space.items():
        if isinstance(values, list) and len(values) < 2:
            raise RecipeError(f"sweep.space.{name}", "one value leaves no choice", action="give two or more")
    return made
