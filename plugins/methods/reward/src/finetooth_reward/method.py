"""The method `rm` trains on pairs or labelled answers, one optimizer step per batch of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from finetooth_hooks import DataError, Datum, Engine, Options, Pick, Prepared, RecipeError
from finetooth_hooks.context import Context
from finetooth_hooks.data.preparation import Rendering
from finetooth_hooks.reports import StepReport
from finetooth_methods.batched import BatchedMethod
from finetooth_methods.preference_health import Health
from finetooth_rows.refusing import refuse_left_out
from pydantic import Field

from finetooth_reward.rendering import Kind, kind_of

LOSSES = {"pairs": "bradley_terry", "labels": "score_mse"}


class RmOptions(Options):
    """Options of `rm`."""

    loss: Pick = "auto"
    """The loss: a name, or a mapping with `name` and its options. `auto` is `bradley_terry` for pairs and `score_mse`
    for rows with a number."""
    center_rewards_coefficient: float = Field(default=0.0, ge=0)
    """How strongly the mean score of a pair is pulled to 0, which pairs alone leave open; 0.01 is common. If the recipe
    picks a loss, set it in that loss."""
    margin: bool = True
    """Whether the chosen answer must score higher by the row's margin, if the row has one."""
    unusable: Literal["raise", "drop"] = "raise"
    """What happens to rows with an empty answer, two equal answers, or a margin below 0: `raise` names them and stops,
    `drop` leaves them out and counts them."""


class Rm(BatchedMethod):
    """A reward model. A pair is two data of one group, the chosen answer first; each is scored at its last token."""

    def __init__(self, options: RmOptions, context: Context) -> None:
        self._options = options
        self._kind: Kind = _first_kind(context)
        pick = options.loss
        if pick == "auto":
            pick = LOSSES[self._kind]
            if self._kind == "pairs":
                pick = {"name": pick, "center_rewards_coefficient": options.center_rewards_coefficient}
        elif options.center_rewards_coefficient:
            raise RecipeError(
                "method.center_rewards_coefficient",
                "the recipe picks a loss, which has options of its own",
                action="set it there: method.loss: {name: bradley_terry, center_rewards_coefficient: ...}",
            )
        super().__init__(context, context.loss(pick, setting="method.loss"))
        self.noun = "answer" if self._kind == "pairs" else "row"
        self._health = Health(context, calmer="train fewer epochs, or set method.center_rewards_coefficient")

    def prepare(self) -> Prepared:
        """Read and tokenise the training rows.

        Raises:
            RecipeError: the recipe cuts long rows, which changes the judged text.
            DataError: a row is unusable, or all labels are the same.
        """
        preparation = self._context.prepare("train", rendering(self._kind, self._options, self._context), None)
        report = preparation.report
        if self._options.unusable == "raise":
            refuse_left_out(report, "method.unusable")
        if not report.used:
            raise DataError(
                "data.train",
                "no row can be used: " + "; ".join(f"{count} {reason}" for reason, count in report.dropped.items()),
                action="raise train.max_length or change the data",
            )
        data: Sequence[Datum] = preparation.data
        notes = report.notes
        if self._kind == "labels":
            notes += _judge_labels(data)
        batches = self.begin(data, of_row=2 if self._kind == "pairs" else 1)
        return Prepared(batches.total_steps, batches.steps_per_epoch, dataclasses.replace(report, notes=notes))

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch; a metric outside its healthy range gets one note."""
        for report in super().steps(engine):
            self._health.watch(report)
            yield report

    def _check_first(self, report: StepReport) -> None:
        """Skip the check of the first loss, which depends on a random head."""


def rendering(kind: Kind, options: RmOptions, context: Context) -> Rendering:
    """The rendering of rows to tokens.

    Raises:
        RecipeError: the recipe cuts long rows.
    """
    train = context.train
    if train.excess_length not in ("drop", "raise"):
        raise RecipeError(
            "train.excess_length",
            f"{train.excess_length} would cut answers, and a score of a part says nothing of the whole",
            action="set it to drop or raise",
        )
    settings = {
        "kind": kind, "unusable": options.unusable, "margin": options.margin, "max_length": train.max_length,
        "excess_length": train.excess_length,
    }  # fmt: skip
    return Rendering("finetooth_reward.rendering:build", settings)


def _first_kind(context: Context) -> Kind:
    """The kind of the first row; pairs, if `prepare` would refuse it."""
    try:
        return kind_of(context.examples("train").rows[0][1])
    except DataError:
        return "pairs"


def _judge_labels(data: Sequence[Datum]) -> tuple[str, ...]:
    """
    Raises:
        DataError: all labels are the same.
    """
    labels = [datum.scalars["label"] for datum in data]
    low, high = min(labels), max(labels)
    if low == high:
        raise DataError(
            "data.train", f"every one of {len(labels)} rows has the label {low:g}: there is nothing to learn",
            action="give rows with different labels",
        )  # fmt: skip
    return (f"labels lie between {low:g} and {high:g}, {sum(labels) / len(labels):.3g} in the mean",)
