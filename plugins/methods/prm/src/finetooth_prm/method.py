"""The method `prm` trains on answers in steps, one optimizer step per batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from finetooth_hooks import DataError, Datum, Options, Pick, Prepared, RecipeError
from finetooth_hooks.context import Context
from finetooth_hooks.data.preparation import Limit, Rendering
from finetooth_hooks.reports import StepReport
from finetooth_methods.batched import BatchedMethod
from finetooth_rows.refusing import refuse_left_out
from pydantic import Field

from finetooth_prm.rendering import LabelledSteps


class PrmOptions(Options):
    """Options of `prm`."""

    separator: str = Field(default="\n", min_length=1)
    """What follows each step: a text, or the spelling of a special token. The step is judged at its last token."""
    train_on: Literal["all", "last"] = "all"
    """Whether every step of an answer trains, or only the last one."""
    loss: Pick = "step_cross_entropy"
    """The loss: a name, or a mapping with `name` and its options."""
    unusable: Literal["raise", "drop"] = "raise"
    """What happens to rows without steps, with an empty step, with a number of labels other than that of steps, or with
    labels that are not true, false or from 0 to 1. `raise` names them and stops, `drop` leaves them out and counts
    them."""


class Prm(BatchedMethod):
    """A process reward model; the value at the end of a step is the logit that the step is right."""

    def __init__(self, options: PrmOptions, context: Context) -> None:
        super().__init__(context, context.loss(options.loss, setting="method.loss"))
        self._options = options

    def prepare(self) -> Prepared:
        """Read and tokenise the training rows. A row that is cut keeps its first steps.

        Raises:
            RecipeError: the recipe splits long rows, and a piece would not see the earlier steps.
            DataError: a row is unusable, or all steps have the same label.
        """
        train = self._context.train
        if train.excess_length in ("split", "truncate_turns"):
            raise RecipeError(
                "train.excess_length", "a piece of an answer would not see the steps before it",
                action="set it to drop, truncate or raise",
            )  # fmt: skip
        options = {name: getattr(self._options, name) for name in ("separator", "train_on", "unusable")}
        preparation = self._context.prepare(
            "train", Rendering("finetooth_prm.rendering:build", options), Limit.of(train)
        )
        if self._options.unusable == "raise":
            refuse_left_out(preparation.report, "method.unusable")
        data = LabelledSteps(preparation.data)
        batches = self.begin(data)
        notes = (*preparation.report.notes, judge_labels(data))
        return Prepared(
            batches.total_steps, batches.steps_per_epoch, dataclasses.replace(preparation.report, notes=notes)
        )

    def _check_first(self, report: StepReport) -> None:
        """Skip the check of the first loss, which depends on a random head."""


def judge_labels(data: Sequence[Datum], split: str = "train") -> str:
    """The number of right steps, in words.

    Raises:
        DataError: all steps have the same label.
    """
    steps, right, low, high = 0, 0.0, np.inf, -np.inf
    for datum in data:
        labels = np.asarray(datum.fields["labels"])[datum.mask]
        steps, right = steps + len(labels), right + float(labels.sum())
        low, high = min(low, float(labels.min())), max(high, float(labels.max()))
    if low == high:
        raise DataError(
            f"data.{split}", f"every one of {steps} steps has the label {low:g}: there is nothing to learn",
            action="give rows with right and wrong steps",
        )  # fmt: skip
    return f"{steps:,} steps, {right / steps:.0%} of them right"
