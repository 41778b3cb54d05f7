"""How the data of one step are cut into micro-batches. Pure: NumPy and plain numbers only.

A micro-batch is a rectangle of rows padded on the right to its longest row; rows x width is its cost, and a token
budget bounds it. Rows of similar length are put together so that little of the rectangle is padding, longest first, so
that the largest rectangle (and an out-of-memory error, if there is to be one) comes first.

Positions after the last target that counts can neither be seen by an earlier position (attention is causal) nor reach
the loss; they are not computed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from finetooth_hooks import DataError, Datum, ImageChunk
from finetooth_hooks.entries import Together


@dataclass(frozen=True)
class MicroBatch:
    """A rectangle of rows.

    Attributes:
        rows: indices into the data, ascending, so that groups stand together in the order the method gave.
        lengths: for each row, how many of its positions are computed.
        packed: rows stand one behind the other and nothing is padded.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    packed: bool = False

    @property
    def width(self) -> int:
        """Positions of the longest row."""
        return max(self.lengths)

    @property
    def positions(self) -> int:
        """Positions computed, padding included."""
        return sum(self.lengths) if self.packed else len(self.rows) * self.width


def check_data(data: Sequence[Datum], *, vocab_size: int, max_positions: int) -> None:
    """Refuse what the engine cannot compute, before anything is computed.

    Args:
        vocab_size: ids must lie below it.
        max_positions: longest sequence the model was made for; 0 is no bound.

    Raises:
        DataError: no data, an empty datum, an image, packing, an id outside the vocabulary, a sequence too long, a
            group that is torn apart, or one target a position beside several; names the datum.
    """
    if not data:
        raise DataError("data", "the step holds no data", action="pass at least one datum")
    target_dims = data[0].targets.ndim, data[0].targets.shape[1:]
    for datum in data:
        where = datum.id or "a datum without id"
        if any(isinstance(chunk, ImageChunk) for chunk in datum.input):
            raise DataError(where, "it holds an image, which the torch backend cannot read yet", action="remove it")
        if datum.parents is not None:
            raise DataError(
                where, "it has segment parents (packing), which the torch backend cannot compute yet",
                action="give each segment a datum of its own",
            )  # fmt: skip
        if len(datum) == 0:
            raise DataError(where, "it has no positions", action="remove it")
        if max_positions and len(datum) > max_positions:
            raise DataError(
                where, f"{len(datum)} positions, but the model was made for {max_positions}",
                action="lower train.max_length",
            )  # fmt: skip
        if (datum.targets.ndim, datum.targets.shape[1:]) != target_dims:
            raise DataError(
                where,
                f"targets have shape {datum.targets.shape}, those of {data[0].id!r} {data[0].targets.shape}",
                action="give every position of a step the same number of targets",
            )
        _check_ids(where, "input", datum.tokens, vocab_size)
        _check_ids(where, "target", datum.targets[datum.mask], vocab_size)
    group_indices(data)


def check_fields(data: Sequence[Datum]) -> None:
    """Refuse data that a loss cannot read side by side, whichever of them share a micro-batch.

    Raises:
        DataError: a field (`weights` may be absent) or scalar that some data of the step have and others lack, or a
            field of another shape per position; names the datum.
    """
    fields = {name for datum in data for name in datum.fields} - {"weights"}
    scalars = {name for datum in data for name in datum.scalars}
    shapes: dict[str, tuple[int, ...]] = {}
    for datum in data:
        where = datum.id or "a datum without id"
        for what, missing in (("field", fields - set(datum.fields)), ("scalar", scalars - set(datum.scalars))):
            if missing:
                raise DataError(
                    where,
                    f"it lacks the {what} {min(missing)!r}, which other data of the step have",
                    action=f"give every datum of a step the same {what}s",
                )
        for name, values in datum.fields.items():
            shape = shapes.setdefault(name, values.shape[1:])
            if values.shape[1:] != shape:
                raise DataError(
                    where,
                    f"field {name!r} has shape {values.shape[1:]} per position, in other data of the step {shape}",
                    action="give it the same shape in every datum of a step",
                )


def _check_ids(where: str, what: str, ids: np.ndarray, vocab_size: int) -> None:
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
        bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise DataError(
            where,
            f"{what} id {bad} is outside the model's vocabulary of {vocab_size}",
            action="use the tokenizer that belongs to the model",
        )


def computed_length(datum: Datum) -> int:
    """Positions up to the last target that counts; at least 1, so that the row exists."""
    counting = np.flatnonzero(datum.mask)
    return int(counting[-1]) + 1 if counting.size else 1


def group_indices(data: Sequence[Datum]) -> np.ndarray:
    """(S,) int64: the group of each datum, 0-based and contiguous; a datum without a group is its own.

    Raises:
        DataError: the data of a group do not stand next to each other.
    """
    indices = np.zeros(len(data), dtype=np.int64)
    seen: set[str] = set()
    for i, datum in enumerate(data):
        continues = i > 0 and datum.group is not None and datum.group == data[i - 1].group
        if datum.group is not None and not continues:
            if datum.group in seen:
                raise DataError(
                    datum.id or f"datum {i}",
                    f"the data of group {datum.group!r} do not stand next to each other",
                    action="order the data of a step by group",
                )
            seen.add(datum.group)
        indices[i] = 0 if i == 0 else indices[i - 1] + (not continues)
    return indices


def count_normalizers(data: Sequence[Datum]) -> dict[str, float]:
    """The normalizers of a whole step: sum of weights and number of positions that count, sequences with at least one,
    groups; `none` is 1. With several targets a position, a weight per position counts once, one per target each."""
    weights = 0.0
    for datum in data:
        given = datum.fields.get("weights")
        weights += float(datum.mask.sum() if given is None else given[datum.mask].sum(dtype=np.float64))
    return {
        "weights": weights,
        "tokens": float(sum(int(datum.mask.sum()) for datum in data)),
        "sequences": float(sum(bool(datum.mask.any()) for datum in data)),
        "groups": float(group_indices(data)[-1] + 1) if data else 0.0,
        "none": 1.0,
    }


def lay_out(
    data: Sequence[Datum],
    *,
    budget: int,
    together: Together = "sequence",
    whole: bool = False,
    packed: bool = False,
) -> tuple[MicroBatch, ...]:
    """Cut a step into micro-batches.

    Args:
        data: of the step; `check_data` has seen them.
        budget: most positions of one micro-batch, padding included. A group that must stay whole and exceeds
            it gets a micro-batch of its own.
        together: with `group`, a group is never cut; otherwise every sequence goes where it fits.
        whole: compute every position, also those after the last target that counts.
        packed: rows stand one behind the other, so only their sum counts; micro-batches get equal shares.
    """
    lengths = [len(datum) if whole else computed_length(datum) for datum in data]
    if together == "group":
        starts = np.flatnonzero(np.diff(group_indices(data), prepend=-1))
        units = [tuple(int(i) for i in unit) for unit in np.split(np.arange(len(data)), starts[1:])]
    else:
        units = [(i,) for i in range(len(data))]
    units.sort(key=lambda unit: -max(lengths[i] for i in unit))  # a stable sort: equal lengths keep their order

    if packed:
        return _even(units, lengths, budget)
    batches: list[list[int]] = []
    width = 0
    for unit in units:
        if not batches or (len(batches[-1]) + len(unit)) * width > budget:
            batches.append([])
            width = max(lengths[i] for i in unit)
        batches[-1].extend(unit)
    return tuple(MicroBatch(tuple(rows), tuple(lengths[i] for i in rows)) for rows in map(sorted, batches))


def _even(units: Sequence[tuple[int, ...]], lengths: Sequence[int], budget: int) -> tuple[MicroBatch, ...]:
    """Share units out, longest first, each to the micro-batch that holds least; as few as the budget allows."""
    sizes = [sum(lengths[i] for i in unit) for unit in units]
    order = sorted(range(len(units)), key=lambda i: -sizes[i])
    count = max(1, math.ceil(sum(sizes) / budget))
    while True:
        batches: list[list[int]] = [[] for _ in range(count)]
        loads = [(0, place) for place in range(count)]  # a heap
        for i in order:
            load, place = loads[0]
            heapq.heapreplace(loads, (load + sizes[i], place))
            batches[place].append(i)
        # one more helps where a micro-batch of several units is too full
        if all(load <= budget or len(batches[place]) == 1 for load, place in loads):
            break
        count += 1 + count // 50
    rows = [sorted(row for i in batch for row in units[i]) for batch in batches if batch]
    return tuple(MicroBatch(tuple(members), tuple(lengths[i] for i in members), packed=True) for members in rows)


def one_batch(data: Sequence[Datum]) -> MicroBatch:
    """All data as one rectangle, in their order: what a loss with `together: step` sees."""
    return MicroBatch(tuple(range(len(data))), tuple(computed_length(datum) for datum in data))
