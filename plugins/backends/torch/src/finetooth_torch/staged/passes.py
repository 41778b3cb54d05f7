"""Passes a call's micro-batches through the ranks of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from finetooth_steps.micro_batches import MicroBatch
from torch import Tensor
from torch.nn import functional

from finetooth_torch.attention.slices import Slices
from finetooth_torch.decoder.bodies import States
from finetooth_torch.draws import Draws, Laid
from finetooth_torch.layout.rectangles import Rectangle
from finetooth_torch.staged.body import StagedBody


class StagedPasses:
    """Implements `finetooth_hooks.protocols.StagePasses`.

    Args:
        rectangles: of the micro-batches.
        entered: the model as the role of the pass, in its mode and with the random streams of a micro-batch.
        compute: at the last rank, a micro-batch's part of the loss, with its graph; None if nothing trains.
        backward: whether gradients are wanted.
    """

    def __init__(
        self, body: StagedBody, draws: Draws, rectangles: Sequence[Rectangle],
        entered: Callable[[int], AbstractContextManager[None]], compute: Callable[[int], Tensor | None], *,
        backward: bool,
    ) -> None:  # fmt: skip
        self._body, self._draws, self._rectangles = body, draws, rectangles
        self._entered, self._compute, self._backward = entered, compute, backward
        self._cells = max(_cells(rectangle.batch, body.slices) for rectangle in rectangles)
        self._states: dict[int, States] = {}
        self._again: dict[int, tuple[Tensor | None, Laid | None, Tensor | None]] = {}

    def through(self) -> None:
        """Pass all of them through the layers of all ranks."""
        layers = self._body.layers
        like = layers.sent.new_empty((self._cells, layers.sent.shape[-1]))
        try:
            self._body.line.through(self, len(self._rectangles), like, backward=self._backward)
        finally:
            self._body.arrived = layers.received = None
            layers.sent = layers.sent.detach()[:0]

    def forward(self, number: int, received: Tensor | None) -> Tensor:
        """(N, D), with as many rows as the largest micro-batch."""
        with self._entered(number), torch.set_grad_enabled(self._backward):
            states = self._body.advance(self._rectangles[number], received)
            if self._backward:
                self._again[number] = received, self._draws.laid, self._draws.wanted
        rows = states.rows
        self._states[number] = replace(states, rows=rows[:0])
        return functional.pad(rows, (0, 0, 0, self._cells - len(rows)))

    def loss(self, number: int, states: Tensor) -> Tensor:
        """See `finetooth_hooks.protocols.StagePasses`; with a gradient for all states, possibly 0."""
        known = self._states.pop(number)
        with self._entered(number), torch.set_grad_enabled(self._backward):
            self._body.arrived = replace(known, rows=states)
            objective = self._compute(number)
            nothing = (states * 0.0).sum()
            return nothing if objective is None else objective + nothing

    @contextmanager
    def again(self, number: int) -> Iterator[None]:
        """A layer that is recomputed in the backward pass has the same input and dropout."""
        self._states.pop(number, None)
        received, laid, wanted = self._again.pop(number, (None, None, None))
        with self._entered(number):
            self._body.layers.received = received
            self._draws.laid, self._draws.wanted = laid, wanted
            yield


def _cells(batch: MicroBatch, slices: Slices | None) -> int:
    """Most positions that this rank computes of a micro-batch."""
    rows = batch.filled or tuple((place,) for place in range(len(batch.rows)))
    width = max(batch.width, *(sum(batch.lengths[place] for place in row) for row in rows))
    return len(rows) * (width if slices is None else 2 * -(-width // slices.pieces))
