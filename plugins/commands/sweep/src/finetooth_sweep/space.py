"""What a sweep tries: the section `sweep` of a recipe."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any, Literal

from finetooth_hooks import Options
from finetooth_hooks.errors import RecipeError
from finetooth_recipes.problems import unknown_key
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
    """Only the least and so many more; with a whole `low` and step, whole numbers come of it."""

    @model_validator(mode="after")
    def _is_a_span(self) -> Span:
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        return self

    @property
    def numbers(self) -> Sequence[float] | None:
        """All of them, if there is a step."""
        if self.step is None:
            return None
        if self.low.is_integer() and self.step.is_integer():
            return range(int(self.low), math.floor(self.high) + 1, int(self.step))
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return [float(low + i * step) for i in range(int((high - low) / step) + 1)]


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

    @property
    def choices(self) -> dict[str, Sequence[Any] | None]:
        """Values of each setting; None: all numbers of a span."""
        return {name: of if isinstance(of, list) else of.numbers for name, of in self.space.items()}

    @property
    def size(self) -> float:
        """How many settings the space holds in all."""
        return math.prod(math.inf if values is None else len(values) for values in self.choices.values())

    def drawn(self, trial: Trial) -> dict[str, Any]:
        """Settings that a trial tries."""
        settings: dict[str, Any] = {}
        for name, values in self.choices.items():
            if values is not None:
                settings[name] = values[trial.suggest_int(_index(name), 0, len(values) - 1)]
            elif isinstance(span := self.space[name], Span):
                settings[name] = trial.suggest_float(name, span.low, span.high, log=span.log)
        return settings

    def untried(self, tried: Collection[str], draws: random.Random) -> dict[str, int]:
        """Parameters of a trial whose settings are new, of a space of choices that holds more than these.

        Args:
            tried: settings, each by its `key`.
        """
        choices = {name: values or () for name, values in self.choices.items()}
        while True:
            at = {name: draws.randrange(len(values)) for name, values in choices.items()}
            if key({name: choices[name][index] for name, index in at.items()}) not in tried:
                return {_index(name): index for name, index in at.items()}


def key(settings: Any) -> str:
    """By which settings are the same."""
    return json.dumps(settings, sort_keys=True, default=str)


def _index(name: str) -> str:
    """Of the parameter that picks a value of a setting."""
    return f"{name} (index)"


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
        if unknown := unknown_key(error, Sweep, section, prefix=("sweep",)):
            raise unknown from None
        errors = error.errors()
        spans = [
            problem for problem in errors if any("Span" in str(part) for part in problem["loc"])
        ]  # of a mapping, what is wrong with it as a span
        first = (spans or errors)[0]
        place = ".".join(str(part) for part in first["loc"] if "Span" not in str(part) and part != "list[any]")
        action = f"write {SPAN}, or a list of values" if place.startswith("space.") else "fix it, or leave it out"
        raise RecipeError(f"sweep.{place}".rstrip("."), first["msg"], action=action) from None
    for name, values in made.space.items():
        if name.partition(".")[0] in ("output", "sweep"):
            raise RecipeError(f"sweep.space.{name}", "a trial does not read it", action="name a setting that trains")
        if not isinstance(values, list):
            continue
        if len(values) < 2:
            raise RecipeError(f"sweep.space.{name}", "one value leaves no choice", action="give two or more")
        keys = [key(value) for value in values]
        if twice := [written for written in keys if keys.count(written) > 1]:
            raise RecipeError(f"sweep.space.{name}", f"{twice[0]} stands there twice", action="give it once")
    # what a setting holds is set after the setting itself, which would replace it
    return made.model_copy(update={"space": dict(sorted(made.space.items(), key=lambda item: item[0].count(".")))})
