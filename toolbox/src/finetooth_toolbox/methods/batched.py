"""What methods share whose data stay the same over the run: batches in an exact order, one optimizer step for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from finetooth_hooks.bases import MethodBase
from finetooth_hooks.context import Context
from finetooth_hooks.datum import Datum
from finetooth_hooks.engine import Engine
from finetooth_hooks.losses import LossSpec
from finetooth_hooks.reports import StepReport

from finetooth_toolbox.methods.batches import Batches, train_step


class BatchedMethod(MethodBase):
    """The stepping part of a `protocols.Method`; a method that derives from it writes `prepare`, which calls `begin`.

    Args:
        context: the builder's.
        loss: of every step.
    """

    first_loss_high: ClassVar[str] = "a wrong tokenizer"
    """What a first loss above the family's range often means."""
    first_loss_low: ClassVar[str] = "the model knows these rows already"
    """What one below it often means."""

    def __init__(self, context: Context, loss: LossSpec) -> None:
        self._context, self._loss = context, loss
        self._data: Sequence[Datum] = ()
        self._of_row = 1
        self._batches: Batches | None = None
        self._restored: Mapping[str, Any] | None = None

    @property
    def data(self) -> Sequence[Datum]:
        """What the run trains, in the order of the rows (`protocols.Method`)."""
        return self._data

    def begin(self, data: Sequence[Datum], *, of_row: int = 1) -> Batches:
        """Take the data of the run; returns their batches, at the place where a restored state left off.

        Args:
            of_row: how many successive data make one row and go into one batch; `train.batch_size` counts rows.
        """
        self._data, self._of_row = data, of_row
        return self.begin_count(len(data) // of_row)

    def begin_count(self, size: int) -> Batches:
        """As `begin`, for `size` things that the method looks up itself, such as pairs."""
        self._batches = Batches.of(size, self._context.train)
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
                f"the first training loss is {report.loss:.2f} nats per token; with this model it usually lies between "
                f"{low:g} and {high:g}. A high one often means {self.first_loss_high}, a low one that "
                f"{self.first_loss_low}"
            )
