"""Pre-training on documents that are tokenised while training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from finetooth_hooks import DataError, DataReport, Engine, Prepared, RecipeError, StepReport
from finetooth_hooks.context import Context
from finetooth_hooks.data.preparation import Rendering
from finetooth_methods.batched import BatchedMethod, refuse_curriculum, train_step

from finetooth_pretrain.method import APART, RENDER, Pretrain, PretrainOptions
from finetooth_pretrain.streaming import Cursor, DocumentStream, Pass, Rows, Shape

TRIED = 1_000
"""Largest number of rows to read for a usable one before a run begins."""
REASONS = 20
"""Largest number of reasons with separate counts."""
OTHER = "for another reason"
FIXED = ("batch_size", "max_length", "shuffle_buffer", "seed")
"""Settings that must be the same in the saved and the restored run."""


class StreamedPretrain(BatchedMethod):
    """`pretrain` with `streaming: true`: reads rows on demand and tokenises them in this process; only `shuffle_buffer`
    windows are in memory. The state is a cursor, at which a restored method continues: earlier rows are read again, but
    not tokenised.

    Unusable rows (an empty text, a row of another kind) are left out and counted in each step's `left_out`. A note
    names the first row of each reason, and the end of the run reports their numbers. An unreadable source ends the run.

    Raises:
        RecipeError: the recipe has no number of steps, or a fraction of a pass.
    """

    first_loss_high, first_loss_low = Pretrain.first_loss_high, Pretrain.first_loss_low

    def __init__(self, options: PretrainOptions, context: Context) -> None:
        train = context.train
        if train.max_steps is None:
            raise RecipeError(
                "train.max_steps",
                "method.streaming reads the data while training, so the number of steps is not known before",
                action="set train.max_steps, or method.streaming: false",
            )
        if train.epochs != int(train.epochs):
            raise RecipeError(
                "train.epochs",
                f"{train.epochs:g} passes, and with method.streaming it is not known where a part of one ends",
                action="set a whole number, or leave train.epochs out: train.max_steps decides",
            )
        refuse_curriculum(train)
        super().__init__(context, context.loss(options.loss, setting="method.loss"))
        self._options, self._max_steps, self._epochs = options, train.max_steps, int(train.epochs)
        self._shape = Shape(
            length=train.max_length,
            block=options.shuffle_buffer if train.shuffle else 1,
            batch=train.batch_size,
            seed=train.seed,
            isolate=options.isolate_documents,
        )
        self._cursor, self._step = Cursor(), 0
        self._reasons: Counter[str] = Counter()

    def prepare(self) -> Prepared:
        """Read the first document, so that data of another kind fail early.

        Raises:
            DataError: the data have no row, or none of the first `TRIED` rows is usable.
        """
        first: DataError | None = None
        for _, document in islice(self._open(0), TRIED):
            if not isinstance(document, DataError):
                break
            first = first or document
        else:
            raise first or DataError("data.train", "it has no rows", action="check the path")
        shape = self._shape
        most = self._max_steps * shape.batch * shape.length
        order = f"shuffled over {shape.block:,} windows" if shape.block > 1 else "in the order of the data"
        note = f"documents are read as they come: up to {most:,} tokens in windows of {shape.length}, {order}"
        report = DataReport(
            split="train",
            rows=0,
            used=0,
            longest=shape.length,
            segmented=shape.isolate,
            notes=(note, *self._ends(), *((APART,) if shape.isolate else ())),
        )
        return Prepared(self._max_steps, 0, report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch of windows."""
        stream = DocumentStream(
            self._open, self._shape, cursor=self._cursor, left_out=self._say_left_out, passed=self._say_passed
        )
        batches = stream.batches()
        while self._step < self._max_steps and not (self._epochs and self._cursor.passes >= self._epochs):
            data, after = next(batches)
            self._cursor, self._step = after, self._step + 1  # also if the step fails: its data are then skipped
            report = train_step(engine, data, self._loss, after.epoch(self._shape.block))
            if after.left_out:
                report = replace(report, metrics={**report.metrics, "left_out": float(after.left_out)})
            if self._step == 1:
                self._check_first(report)
            yield report
        if self._reasons:
            self._context.note(f"left out of data.train: {self._counted()}", topic="pretrain: all left out")

    def _ends(self) -> tuple[str, ...]:
        """A note on the earlier of two ends, if the recipe sets both."""
        if not self._epochs:
            return ()
        passes = f"{self._epochs} {'pass' if self._epochs == 1 else 'passes'} over data.train (train.epochs)"
        steps = f"{self._max_steps:,} step{'s' * (self._max_steps != 1)} (train.max_steps)"
        return (f"the run ends after {passes} or {steps}, whichever comes first",)

    def state(self) -> Mapping[str, Any]:
        """The cursor, with the settings behind it."""
        return {"step": self._step, "cursor": self._cursor.as_state(), **self._settings()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state, so that exactly the next batch follows.

        Raises:
            DataError: the state is from a run with other settings.
        """
        for name, now in self._settings().items():
            if state.get(name) != now:
                raise DataError(
                    "cursor",
                    f"{name} was {state.get(name)} when it was saved and is {now} now",
                    action="resume with the settings of the saved run",
                )
        self._cursor, self._step = Cursor(**state["cursor"]), int(state["step"])

    def _settings(self) -> dict[str, int]:
        shape = self._shape
        return dict(zip(FIXED, (shape.batch, shape.length, shape.block, shape.seed), strict=True))

    def _open(self, row: int) -> Rows:
        rendering = Rendering(RENDER, {"separator": self._options.separator})
        return self._context.stream("train", rendering, skip=row)

    def _say_left_out(self, error: DataError, count: int) -> None:
        reason = error.problem.removeprefix(f"{error.where}: ")
        if reason not in self._reasons and len(self._reasons) >= REASONS:
            reason = OTHER
        elif reason not in self._reasons:
            self._context.note(
                f"{error.problem}: left out; further rows that cannot be used are counted in each step's left_out",
                topic=f"pretrain: left out: {reason}",
            )
        self._reasons[reason] += 1

    def _counted(self) -> str:
        """Rows left out since the run began or was resumed, counted again in each further pass."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self._reasons.items())

    def _say_passed(self, passed: Pass) -> None:
        length = self._shape.length
        last = "" if passed.last == length else f"; the last has {passed.last}"
        last += f"; left out: {self._counted()}" if self._reasons else ""
        self._context.note(
            f"a pass over data.train: {passed.documents:,} documents in {passed.windows:,} windows of {length}{last}",
            topic="pretrain: a pass",
        )
