"""Trains the last answer of each conversation, by any loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetooth_hooks import (
    Context,
    Conversation,
    DataError,
    Datum,
    Engine,
    Example,
    Options,
    Pick,
    Prepared,
    Rendered,
    StepReport,
)
from finetooth_hooks.data.preparation import Batches, prepare, train_step


class MethodOptions(Options):
    """Options of `acme_method`."""

    loss: Pick = "dpo"
    """The loss: a name, or a mapping with `name` and its options."""


def build(options: MethodOptions, context: Context) -> LastAnswer:
    """Called once a run, with the options of the recipe."""
    return LastAnswer(options, context)


class LastAnswer:
    """A generator of steps; what outlives a `yield` is in `state()`."""

    def __init__(self, options: MethodOptions, context: Context) -> None:
        self._context = context
        self._loss = context.loss(options.loss, setting="method.loss")
        self._data: tuple[Datum, ...] = ()
        self._batches: Batches | None = None

    def prepare(self) -> Prepared:
        """Read and tokenise the training rows; called once, before the engine is built."""
        preparation = prepare(self._context.examples("train"), self._render, self._context.train)
        self._data = preparation.data
        self._batches = Batches.of(len(self._data), self._context.train)
        return Prepared(self._batches.total_steps, self._batches.steps_per_epoch, preparation.report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step per item."""
        batches = self._prepared()
        for indices in batches:
            yield train_step(engine, [self._data[index] for index in indices], self._loss, batches.epoch)

    def state(self) -> Mapping[str, Any]:
        """Where in the data it is."""
        return self._prepared().state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._prepared().restore(state)

    def _prepared(self) -> Batches:
        if self._batches is None:
            raise RuntimeError("prepare() comes first")
        return self._batches

    def _render(self, example: Example) -> Rendered:
        if not isinstance(example, Conversation):
            problem = "the method acme_method learns from conversations only"
            raise DataError("row", problem, action="set data.format to a chat format")
        return self._context.renderer.render(example, train_on="last")
