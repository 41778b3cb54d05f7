"""What methods share: from examples to data with nothing lost unseen, the order of batches, and one optimizer step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetooth_hooks.datum import Datum
from finetooth_hooks.engine import Engine
from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Example, Rendered
from finetooth_hooks.losses import LossSpec
from finetooth_hooks.plan import TrainSettings
from finetooth_hooks.protocols import Examples
from finetooth_hooks.reports import DataReport, StepReport

NOTHING_TRAINED = "nothing to train on"
TOO_LONG = "longer than train.max_length"
TRUNCATED = "truncated to train.max_length"
SHOWN = 5
"""How many broken rows an error names before it only counts."""


@dataclass(frozen=True)
class Preparation:
    """Data of one split, and what became of its rows."""

    data: tuple[Datum, ...]
    report: DataReport


def prepare(examples: Examples, render: Callable[[Example], Rendered], train: TrainSettings) -> Preparation:
    """Render examples to data. A row that cannot be used is counted by reason, never dropped unseen.

    Args:
        render: tokens and weights of one example.
        train: gives `max_length` and `excess_length`.

    Raises:
        DataError: a row is longer than `max_length` and `excess_length` is `raise`; a row has nothing to train on
            although it was not
            truncated; or no row is left.
    """
    data: list[Datum] = []
    dropped: dict[str, list[str]] = defaultdict(list)
    truncated, shortest = 0, 0
    broken: list[DataError] = []
    for id_, example in examples.rows:
        try:
            rendered = render(example)
        except DataError as error:
            broken.append(DataError(id_, error.problem, action=error.action))
            continue
        tokens, weights = rendered.tokens, rendered.weights
        if not any(weights[1:]):
            broken.append(
                DataError(
                    id_,
                    f"{NOTHING_TRAINED}: no assistant message or completion with text",
                    action="remove the row, or choose what trains with method.train_on",
                )
            )
            continue
        if len(tokens) > train.max_length + 1:  # a datum of N positions is made of N + 1 tokens
            if train.excess_length == "raise":
                raise DataError(
                    id_,
                    f"{len(tokens) - 1} tokens, more than train.max_length={train.max_length}",
                    action="raise train.max_length, or set train.excess_length to drop or truncate",
                )
            if train.excess_length == "drop":
                dropped[TOO_LONG].append(id_)
                shortest = min(shortest or len(tokens) - 1, len(tokens) - 1)
                continue
            tokens, weights = tokens[: train.max_length + 1], weights[: train.max_length + 1]
            if not any(weights[1:]):
                dropped[f"{NOTHING_TRAINED} after truncation"].append(id_)
                continue
            truncated += 1
        data.append(Datum.from_tokens(tokens, weights, id=id_))
    refuse(broken, len(examples.rows))
    report = DataReport(
        split=examples.split,
        rows=len(examples.rows),
        used=len(data),
        dropped={reason: len(ids) for reason, ids in dropped.items()},
        dropped_ids={reason: tuple(ids[:5]) for reason, ids in dropped.items()},
        changed={TRUNCATED: truncated} if truncated else {},
        tokens=sum(len(datum) for datum in data),
        trained_tokens=sum(int(datum.mask.sum()) for datum in data),
        longest=max((len(datum) for datum in data), default=0),
    )
    if not data:
        figures = {TOO_LONG: f" {train.max_length} (the shortest has {shortest} tokens)"}
        reasons = "; ".join(f"{len(ids)} {reason}{figures.get(reason, '')}" for reason, ids in dropped.items())
        raise DataError(
            f"data.{examples.split}",
            f"no row can be used: {reasons or 'it has no rows'}",
            action="raise train.max_length or change the data",
        )
    return Preparation(tuple(data), report)


def refuse(broken: Sequence[DataError], rows: int) -> None:
    """Name the first few rows that cannot be used, and count them all.

    Args:
        broken: one error a row; its problem begins with the row's id.
        rows: how many rows were looked at.

    Raises:
        DataError: if there are any.
    """
    if not broken:
        return
    if len(broken) == 1:
        raise broken[0]
    shown = "; ".join(error.problem for error in broken[:SHOWN])
    more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    raise DataError(f"{len(broken)} of {rows} rows cannot be used", f"{shown}{more}", action=broken[0].action)


class Batches:
    """The order in which data are trained: every epoch a new permutation from an owned seed, cut into batches; the
    last one of an
    epoch is smaller. The cursor is exact: a restored one yields what would have come next.

    Args:
        size: number of data.
        batch_size: data per step.
        epochs: passes, may be a fraction.
        max_steps: bound on the steps, None is no bound.
        seed: of the permutations.
        shuffle: False keeps the order given.
    """

    def __init__(
        self, size: int, batch_size: int, epochs: float, max_steps: int | None, seed: int, *, shuffle: bool = True
    ) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.steps_per_epoch = math.ceil(size / batch_size)
        planned = max(1, math.ceil(epochs * self.steps_per_epoch - 1e-9))
        self.total_steps = planned if max_steps is None else (max_steps if epochs == 0 else min(planned, max_steps))
        self.step = 0

    @classmethod
    def of(cls, size: int, train: TrainSettings) -> Batches:
        """From the `train` section. With `max_steps` and no `epochs`, epochs repeat until the steps are done."""
        return cls(size, train.batch_size, train.epochs, train.max_steps, train.seed, shuffle=train.shuffle)

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of each batch; `step` counts a batch once the next one is asked for or the iteration ends."""
        while self.step < self.total_steps:
            epoch, index = divmod(self.step, self.steps_per_epoch)
            order = np.arange(self.size)
            if self.shuffle:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
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


def train_step(engine: Engine, data: Sequence[Datum], loss: LossSpec, epoch: float) -> StepReport:
    """One optimizer step on `data`: forward and backward, then the optimizer."""
    result = engine.forward_backward(data, loss)
    stepped = engine.step(metrics={"loss": result.loss or 0.0})
    extra = {f"loss/{name}": value for name, value in result.components.items()} if len(result.components) > 1 else {}
    return StepReport(
        step=stepped.step,
        epoch=epoch,
        loss=result.loss or 0.0,
        tokens=result.tokens,
        targets=result.targets,
        rows=len(data),
        learning_rate=stepped.learning_rate,
        grad_norm=stepped.grad_norm,
        skipped=stepped.skipped,
        metrics={**extra, **result.metrics},
        padding=1 - result.tokens / result.padded if result.padded else 0.0,
    )
