"""The sections of a recipe for evaluation and checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from finetooth_hooks.options import Options
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from finetooth_recipes import cadence
from finetooth_recipes.problems import INVALID
from finetooth_recipes.recipe_picks import Checked, PickMapping, picks


def _checked_cadence(value: Any) -> Any:
    try:
        cadence.parse(value)
    except ValueError as error:
        raise PydanticCustomError(
            INVALID, "{problem}", {"problem": str(error), "action": "write 'every: 50 steps'"}
        ) from None
    return value


Often = Annotated[int | str, AfterValidator(_checked_cadence)]
"""How often: see `finetooth_recipes.cadence`."""


class EvaluateSection(Options):
    """When to evaluate on the held-out rows, and with what."""

    before: bool = True
    """Whether to evaluate before the first step too."""
    every: Often = Field(default=0)
    """How often to evaluate: a number of steps, `50 steps`, `10 minutes`, `epoch`; 0 evaluates only at the end. A run
    always evaluates at the end."""
    evaluators: Literal["auto"] | list[Annotated[str | PickMapping, Checked, picks("evaluator", auto=False)]] = "auto"
    """The measurements; `auto` takes the default evaluators if there are held-out rows."""


class BestSelection(Options):
    """The best checkpoints by a metric."""

    n: int = Field(default=1, ge=1)
    """How many checkpoints stay."""
    metric: str = Field(default="eval/loss", min_length=1)
    """Any metric of the run: `eval/loss`, `eval/exact_match`, `loss`."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether lower (`min`) or higher (`max`) is better. `auto`: lower for names that end with loss, perplexity, error,
    mse, mae, bits_per_byte, brier_score, wer, cer, ter or unfinished, higher for all others."""


class CheckpointSection(Options):
    """When to save the state of a run, where to keep it, and what it must pass."""

    every: Often = Field(default=0)
    """How often to save: a number of steps, `50 steps`, `10 minutes`, `epoch`; 0 is never. A run always saves the
    trained model at the end, and its state when it is interrupted or a plugin stops it."""
    keep_last: int = Field(default=2, ge=0)
    """Number of newest checkpoints that each store keeps; 0 keeps all."""
    keep_best: BestSelection | None = None
    """Keep the best checkpoints by a metric as well."""
    stores: Literal["auto"] | list[Annotated[str | PickMapping, Checked, picks("store", auto=False)]] = "auto"
    """Where to save: stores by name (`device`, `host`, `disk`), or places that a store claims (`s3://bucket/run`);
    `auto` takes the default ones."""
    gates: Literal["auto"] | list[Annotated[str | PickMapping, Checked, picks("gate", auto=False)]] = "auto"
    """Checks that a checkpoint must pass before it is used; `auto` takes the default ones."""
    select_on: str | None = Field(default=None, min_length=1)
    """Make the trained model from the best checkpoint by this metric, not from the last step."""
    wait_for_room: float = Field(default=600.0, ge=0)
    """Seconds that a run waits for room if the disk is full at its end, so that the trained model is not lost; Ctrl-C
    ends the wait."""
    strict: bool = False
    """Whether a run may resume only with the same versions of everything that affects its numbers. Otherwise it resumes
    and reports the differences."""

    @model_validator(mode="after")
    def _selects_what_is_kept(self) -> CheckpointSection:
        if self.select_on is not None and not cadence.parse(self.every):
            raise PydanticCustomError(
                INVALID, "'select_on' needs checkpoints to select from", {"action": "add checkpoint.every, such as 50"}
            )
        return self
