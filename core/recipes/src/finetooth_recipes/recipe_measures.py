"""The sections of a recipe that say when a run is measured and when it is saved."""

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
    """When and how to measure on the held-out rows."""

    before: bool = True
    """Whether to evaluate before the first step too."""
    every: Often = Field(default=0)
    """How often to evaluate, in words as for `checkpoint.every`: a number of steps, `50 steps`, `10 minutes`, `epoch`;
    0 is only at the end, when it is done in any case."""
    evaluators: Literal["auto"] | list[Annotated[str | PickMapping, Checked, picks("evaluator", auto=False)]] = "auto"
    """What measures; `auto` takes the default evaluators if there are held-out rows."""


class BestSelection(Options):
    """The best checkpoints by a metric."""

    n: int = Field(default=1, ge=1)
    """How many stay."""
    metric: str = Field(default="eval/loss", min_length=1)
    """Any metric of the run, `eval/loss`, `eval/exact_match`, `loss`."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Which way is better; `auto` goes by the name: less of what ends with loss, perplexity, error, mse, mae,
    bits_per_byte, brier_score, wer, cer, ter or unfinished, more of the rest."""


class CheckpointSection(Options):
    """When to save the state of a run, where it is kept, and what must be true of it."""

    every: Often = Field(default=0)
    """How often: a number of steps, `50 steps`, `10 minutes`, `epoch`; 0 is never. The trained model is saved at the
    end in any case, and the state when the run is interrupted or a plugin stops it."""
    keep_last: int = Field(default=2, ge=0)
    """So many of the newest checkpoints stay in each store; 0 keeps all."""
    keep_best: BestSelection | None = None
    """The best ones by a metric stay too."""
    stores: Literal["auto"] | list[Annotated[str | PickMapping, Checked, picks("store", auto=False)]] = "auto"
    """Where: stores by name (`device`, `host`, `disk`), or places that one claims (`s3://bucket/run`); `auto` takes
    the default ones."""
    gates: Literal["auto"] | list[Annotated[str | PickMapping, Checked, picks("gate", auto=False)]] = "auto"
    """What a checkpoint must pass before it counts; `auto` takes the default ones."""
    select_on: str | None = Field(default=None, min_length=1)
    """Make the trained model from the best checkpoint by this metric, and not from the last step."""
    wait_for_room: float = Field(default=600.0, ge=0)
    """So many seconds a run whose disk is full when it ends waits for room, rather than lose what it trained; Ctrl-C
    ends the waiting."""
    strict: bool = False
    """Whether a run may only resume with the same versions of everything that its numbers depend on; otherwise a
    difference is reported."""

    @model_validator(mode="after")
    def _selects_what_is_kept(self) -> CheckpointSection:
        if self.select_on is not None and not cadence.parse(self.every):
            raise PydanticCustomError(
                INVALID, "'select_on' needs checkpoints to select from", {"action": "add checkpoint.every, such as 50"}
            )
        return self
