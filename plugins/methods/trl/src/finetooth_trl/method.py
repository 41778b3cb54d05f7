"""The method `trl`: a trainer of TRL computes losses and gradients, and the engine applies them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from finetooth_hooks import Options
from finetooth_hooks.bases import MethodBase
from finetooth_hooks.context import Context
from finetooth_hooks.engine import Engine
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.plan import Pick
from finetooth_hooks.reports import DataReport, Prepared, StepReport
from finetooth_methods.batched import refuse_curriculum
from finetooth_rollouts.scoring import build_rewards, check_columns
from pydantic import Field

from finetooth_trl.rows import columns_of

LOST = (
    "the trainer of TRL computes the loss, so some things differ: the tokenizer's chat template renders the rows "
    "and the trainer masks them, not data.renderer; a trainer with a maximum length cuts rows at "
    "train.max_length, whatever train.excess_length says; with some trainers the loss of a step depends on how "
    "rows are cut into portions; losses of routers are left out",
    "memory and speed depend on the trainer: the memory that ft check plans for a step is a lower bound, because "
    "the trainer keeps the logits of a whole portion",
)
"""Limits of the method, in the words of the plan."""

ENDS = "an interrupted run cannot be resumed, since {}; the weights of its checkpoints can be used"
"""The limit of a trainer that cannot resume."""


class TrlOptions(Options):
    """Options of `trl`."""

    trainer: str
    """The trainer: `sft`, `dpo`, `kto`, `grpo`, `rloo`, `reward`, the name of a class (`DPOTrainer`), or of an
    experimental class with its module, `experimental.gkd.GKDTrainer`."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Fields of the trainer's configuration, by TRL's names (`beta`, `num_generations`). Fields that the recipe sets
    itself are refused: learning rates, steps, batches, seeds, output paths."""
    rewards: list[Pick] = Field(default_factory=list)
    """For trainers that sample: rewards that score answers, as names or mappings with `name` and options. The trainer
    gets each `weight`."""
    teacher: str | None = None
    """For trainers that distil: the teacher, as transformers opens it: a folder or a hub id."""
    portion: int | None = Field(default=None, ge=1)
    """Rows that go through the model at once. Default: all of `train.batch_size`."""


class Trl(MethodBase):
    """A `protocols.Method`: TRL's trainer runs its own loop over the engine's model, and each of its optimizer steps is
    one step of the engine.

    Examples become rows with TRL's columns; the engine clips and applies gradients with the recipe's optimizer and
    schedule; the trainer's logs become metrics of the step.
    """

    def __init__(self, options: TrlOptions, context: Context) -> None:
        from finetooth_trl.resuming import Place, why_not
        from finetooth_trl.trainers import check_arguments, check_order, trainer_class

        self._options, self._context = options, context
        self._trainer = trainer_class(options.trainer)
        self._place: Place | None = None
        portion = options.portion or context.train.batch_size
        if context.train.batch_size % portion:
            raise PlanError(
                f"method.portion: {portion} does not divide train.batch_size, {context.train.batch_size}",
                action="set it to a number that does",
            )
        self._portion = portion
        refuse_curriculum(context.train)
        check_precision(context.train.precision)
        self._rewards = build_rewards(context, options.rewards, "method.rewards")
        if filters := [reward.name for reward in self._rewards if reward.required]:
            raise RecipeError(
                "method.rewards",
                f"{filters[0]} is required, and a trainer of TRL also trains on the answers that a required "
                "reward would leave out",
                action="leave required out, or take a method of finetooth",
            )
        check_arguments(
            self._trainer, options.arguments, judged=bool(self._rewards), taught=options.teacher is not None
        )
        check_order(self._trainer, shuffle=context.train.shuffle)
        self._ends = why_not(self._trainer, options.arguments)

    def prepare(self) -> Prepared:
        """Read the rows.

        Raises:
            DataError: a row has a kind that no trainer of TRL supports, or rows have several kinds.
        """
        rows = self._context.examples("train").rows
        self._rows = columns_of(rows)
        check_columns(self._rewards, (name for row in self._rows for name in row))
        train = self._context.train
        a_epoch = max(1, -(-len(self._rows) // train.batch_size))
        planned = max(1, math.ceil(train.epochs * a_epoch - 1e-9)) if train.epochs else None  # 0: max_steps decides
        bounds = [bound for bound in (planned, train.max_steps) if bound is not None]
        lost = (*LOST, ENDS.format(self._ends)) if self._ends else LOST
        notes = tuple(f"method trl: {note}" for note in lost)
        report = DataReport("train", len(rows), len(self._rows), notes=notes, examples=len(rows))
        self._total = min(bounds) if bounds else a_epoch
        return Prepared(self._total, a_epoch, report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """Run the trainer, one optimizer step of the engine per item.

        Raises:
            PlanError: the plan chose fp16.
            EngineError: the trainer failed; its own error is the cause.
        """
        from finetooth_trl.training import training

        check_precision(engine.info.precision)

        for report, place in training(
            engine,
            self._context,
            self._trainer,
            self._rows,
            arguments=self._options.arguments,
            rewards=self._rewards,
            teacher=self._options.teacher,
            portion=self._portion,
            total=self._total,
            begin=self._place,
        ):
            self._place = place
            yield report

    def state(self) -> Mapping[str, Any]:
        """The position and random state of the trainer."""
        return {"steps": 0} if self._place is None else self._place.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the place in the data and the trainer's settings from a checkpoint.

        Raises:
            PlanError: the run has done steps, and the state of this trainer cannot be restored.
        """
        from finetooth_trl.resuming import Place

        if not int(state["steps"]):
            self._place = None
            return
        if self._ends:
            raise PlanError(
                f"method trl: this run cannot be resumed: {self._ends}",
                action="begin a new run; model or adapter.resume_from takes the weights",
            )
        self._place = Place.of(state)


def check_precision(precision: str | None) -> None:
    """Check that the engine accepts a trainer's gradients.

    Raises:
        PlanError: the precision needs gradients of a scaled loss, and trainers do not scale it.
    """
    if precision == "fp16":
        raise PlanError(
            "train.precision: fp16 needs a loss that is scaled, and a trainer of TRL does not scale it",
            action="set it to bf16 or fp32",
        )
