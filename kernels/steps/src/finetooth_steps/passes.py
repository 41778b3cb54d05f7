"""State of an engine between calls: the pass that a backward repeats, its handle, counters, and reports.

Nothing here knows an array library: every engine that trains in this process uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Counts, Forward, Handle
from finetooth_hooks.errors import EngineError
from numpy.typing import NDArray

from finetooth_steps.micro_batches import MicroBatch
from finetooth_steps.totals import Totals


@dataclass(frozen=True)
class Pass:
    """Facts on which a forward and its backward must agree.

    Attributes:
        data: of one call.
        batches: how they are cut.
        places: of the data among those of the step; key dropout.
        step: optimizer steps done, keys dropout.
        role: whose outputs count as the policy's.
        spec: the loss, None to score only.
        counts: normalizers of the whole step.
        state: the loss's state at the start of the pass.
    """

    data: tuple[Datum, ...]
    batches: tuple[MicroBatch, ...]
    places: tuple[int, ...]
    step: int
    role: str = "policy"
    spec: LossSpec | None = None
    counts: Counts = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def computed(self) -> tuple[MicroBatch, ...]:
        """The parts of a pass through the model: the micro-batches, or their pieces."""
        return tuple(piece for batch in self.batches for piece in batch.computed)


@dataclass
class Evaluated:
    """The results of a pass.

    Attributes:
        outputs: per datum, arrays by name.
        totals: the loss; None without one.
        state: the loss's state afterwards.
    """

    outputs: list[dict[str, NDArray[Any]]]
    totals: Totals | None = None
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Counters:
    """Counters of an engine.

    Attributes:
        step: optimizer steps done, skipped ones included.
        accumulated: calls whose gradients wait for the next step.
        loss: sum of their losses, for a schedule that watches it.
        rows: ids of their data, to be named if the gradient is not finite.
    """

    step: int = 0
    accumulated: int = 0
    loss: float = 0.0
    rows: list[str] = field(default_factory=list)

    def add_rows(self, data: Sequence[Datum]) -> None:
        """Remember the data of a call by their ids, or by their places in the call."""
        self.rows += [str(datum.id or row) for row, datum in enumerate(data)]

    def drop(self) -> None:
        """Drop the accumulated gradients and counts."""
        self.accumulated, self.loss, self.rows = 0, 0.0, []


class PendingPasses(dict[int, Pass]):
    """Passes that wait for their backward, by the number of their handle."""

    def __init__(self) -> None:
        super().__init__()
        self._made = 0

    def open(self, work: Pass, weights_version: int) -> Handle:
        """A new handle for a pass."""
        self._made += 1
        self[self._made] = work
        return Handle(self._made, weights_version)

    def claimed(self, handle: Handle, weights_version: int) -> Pass:
        """The pass of a handle, which stays until it is removed.

        Raises:
            EngineError: the weights have changed since, or the handle is unknown or was used.
        """
        if handle.weights_version != weights_version:
            raise EngineError(
                f"handle {handle.id} is from weights version {handle.weights_version}, and the weights are at "
                f"{weights_version}: it is stale",
                action="call forward again after a step",
            )
        if handle.id not in self:
            raise EngineError(
                f"handle {handle.id} is unknown or was used", action="call forward again for another backward"
            )
        return self[handle.id]


def report(
    work: Pass, outputs: Sequence[Mapping[str, NDArray[Any]]], evaluated: Evaluated | None, handle: Handle | None,
    *, flops: float = 0.0,
) -> Forward:  # fmt: skip
    """The result of a pass.

    Args:
        outputs: per datum, arrays by name.
        evaluated: the loss; None without one.
        flops: that the call computed, if the engine counts them.
    """
    tokens = sum(len(datum) for datum in work.data)
    totals = None if evaluated is None else evaluated.totals
    return Forward(
        outputs=tuple(outputs),
        loss=None if totals is None else totals.loss,
        components={} if totals is None else totals.components,
        metrics={} if totals is None else totals.metrics,
        tokens=tokens,
        # positions after the last target that counts are skipped; they are not padding either
        padded=max(tokens, sum(batch.positions for batch in work.computed)),
        targets=sum(int(datum.mask.sum()) for datum in work.data),
        micro_batches=len(work.computed),
        handle=handle,
        flops=flops,
        totals=None if totals is None else totals.plain,
    )
