"""What methods share that train a batch a step: the exact order of the data, one optimizer step on some of them, and a
method of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from finetooth_hooks.bases import MethodBase
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine, Forward, Stepped
from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.plan import TrainSettings
from finetooth_hooks.reports import StepReport


class Batches:
    """The order in which data are trained: every epoch a new permutation from an owned seed, cut into batches; the last
    one of an epoch is smaller. The cursor is exact: a restored one yields exactly the next batch.

    Args:
        size: number of data.
        batch_size: data per step.
        epochs: passes, may be a fraction.
        max_steps: bound on the steps; None for no bound.
        seed: of the permutations.
        shuffle: False keeps the order given.
        ranks: (size,) what the first epoch is ordered by, the least first; of equals, and from the second epoch on,
            the order is that of the shuffle.
    """

    def __init__(
        self, size: int, batch_size: int, epochs: float, max_steps: int | None, seed: int, *, shuffle: bool = True,
        ranks: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self._ranks = None if ranks is None else np.asarray(ranks)
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.steps_per_epoch = math.ceil(size / batch_size)
        planned = max(1, math.ceil(epochs * self.steps_per_epoch - 1e-9))
        self.total_steps = planned if max_steps is None else (max_steps if epochs == 0 else min(planned, max_steps))
        self.step = 0

    @classmethod
    def of(cls, size: int, train: TrainSettings, lengths: Callable[[], Sequence[int]] | None = None) -> Batches:
        """From the `train` section. With `max_steps` and no `epochs`, epochs repeat until the steps are done.

        Args:
            lengths: of the data, asked for where the section orders them by length; None: they have none.

        Raises:
            RecipeError: the section orders by lengths, and they are unknown.
        """
        if lengths is None:
            refuse_curriculum(train)
        sign = -1 if train.curriculum == "longest_first" else 1
        ranks = None if train.curriculum is None or lengths is None else [sign * length for length in lengths()]
        steps = train.max_steps
        return cls(size, train.batch_size, train.epochs, steps, train.seed, shuffle=train.shuffle, ranks=ranks)

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of each batch; `step` already counts a batch while it is being trained."""
        while self.step < self.total_steps:
            epoch, index = divmod(self.step, self.steps_per_epoch)
            order = np.arange(self.size)
            if self.shuffle:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            if self._ranks is not None and epoch == 0:
                order = order[np.argsort(self._ranks[order], kind="stable")]
            for batch in range(index, self.steps_per_epoch):
                if self.step >= self.total_steps:
                    return
                self.step += 1
                yield [int(i) for i in order[batch * self.batch_size : (batch + 1) * self.batch_size]]

    @property
    def epoch(self) -> float:
        """Passes done, as a fraction."""
        return self.step / self.steps_per_epoch

    def state(self) -> Mapping[str, Any]:
        """The cursor, JSON-able."""
        return {"step": self.step, "size": self.size, "batch_size": self.batch_size}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which `state` was taken.

        Raises:
            DataError: the state belongs to other data or another batch size.
        """
        for name in ("size", "batch_size"):
            if state[name] != getattr(self, name):
                raise DataError(
                    "cursor",
                    f"{name} was {state[name]} when it was saved and is {getattr(self, name)} now",
                    action="resume with the data and train.batch_size of the saved run",
                )
        self.step = int(state["step"])


def refuse_curriculum(train: TrainSettings) -> None:
    """Refuses an order of rows by length.

    Raises:
        RecipeError: the recipe orders rows by length, and the method does not know the lengths.
    """
    if train.curriculum is not None:
        raise RecipeError(
            "train.shuffle",
            f"{train.curriculum}: this method does not know how long its rows are before it trains them",
            action="set it to true or false",
        )


def train_step(engine: Engine, data: Sequence[Datum], loss: LossSpec, epoch: float) -> StepReport:
    """One optimizer step on `data`: forward and backward, then the optimizer."""
    result = engine.forward_backward(data, loss)
    return stepped_report(result, engine.step(metrics={"loss": result.loss or 0.0}), len(data), epoch)


def stepped_report(result: Forward, stepped: Stepped, rows: int, epoch: float) -> StepReport:
    """The report of a step from the results of its forward-backward and its optimizer step."""
    extra = {f"loss/{name}": value for name, value in result.components.items()} if len(result.components) > 1 else {}
    return StepReport(
        step=stepped.step,
        epoch=epoch,
        loss=result.loss or 0.0,
        tokens=result.tokens,
        targets=result.targets,
        rows=rows,
        learning_rate=stepped.learning_rate,
        grad_norm=stepped.grad_norm,
        skipped=stepped.skipped,
        metrics={**extra, **result.metrics},
        padding=1 - result.tokens / result.padded if result.padded else 0.0,
        flops=result.flops,
    )


class BatchedMethod(MethodBase):
    """The stepping part of a `protocols.Method`; a method that derives from it writes `prepare`, which calls `begin`.

    Args:
        context: the builder's.
        loss: of every step.
    """

    first_loss_high: ClassVar[str] = "a wrong tokenizer"
    """Likely causes of a first loss above the family's range."""
    first_loss_low: ClassVar[str] = "the model knows these rows already"
    """Likely causes of a first loss below it."""

    def __init__(self, context: Context, loss: LossSpec) -> None:
        self._context, self._loss = context, loss
        self._data: Sequence[Datum] = ()
        self._of_row = 1
        self._batches: Batches | None = None
        self._restored: Mapping[str, Any] | None = None

    @property
    def data(self) -> Sequence[Datum]:
        """The training data in the order of the rows (`protocols.Method`)."""
        return self._data

    def begin(self, data: Sequence[Datum], *, of_row: int = 1) -> Batches:
        """Take the data of the run; returns their batches, at the place where a restored state left off.

        Args:
            of_row: how many successive data make one row and go into one batch; `train.batch_size` counts rows.
        """
        self._data, self._of_row = data, of_row
        return self._begin(len(data) // of_row, self._lengths)

    def begin_count(self, size: int) -> Batches:
        """As `begin`, for `size` things that the method looks up itself, such as pairs."""
        return self._begin(size, None)

    def _lengths(self) -> list[int]:
        """Positions of each row, of all its data together."""
        each = [len(datum) for datum in self._data]
        return [sum(each[row : row + self._of_row]) for row in range(0, len(each), self._of_row)]

    def _begin(self, size: int, lengths: Callable[[], Sequence[int]] | None) -> Batches:
        self._batches = Batches.of(size, self._context.train, lengths)
        if self._restored is not None:
            self._batches.restore(self._restored)
        return self._batches

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch."""
        batches = self._begun()
        for indices in batches:
            data = [self._data[self._of_row * row + i] for row in indices for i in range(self._of_row)]
            report = train_step(engine, data, self._loss, batches.epoch)
            if batches.step == 1:
                self._check_first(report)
            yield report

    def state(self) -> Mapping[str, Any]:
        """The cursor."""
        return self._begun().state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which `state` was taken; before or after `prepare`."""
        self._restored = state
        if self._batches is not None:
            self._batches.restore(state)

    def _begun(self) -> Batches:
        if self._batches is None:
            raise RuntimeError("prepare() comes before steps() and state()")
        return self._batches

    def _check_first(self, report: StepReport) -> None:
        low, high = self._context.facts.first_loss
        if not low <= report.loss <= high:
            self._context.note(
                f"the first training loss is {report.loss:.2f} nats per token; for this model it usually lies between "
                f"{low:g} and {high:g}. A high one often means {self.first_loss_high}, a low one that "
                f"{self.first_loss_low}"
            )
