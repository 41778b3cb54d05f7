"""How the data of one step are cut into micro-batches. Pure: NumPy and plain numbers only.

A micro-batch is a rectangle of rows padded on the right to its longest row; rows x width is its cost, and a token
budget bounds it. Rows of similar length are put together so that little of the rectangle is padding, longest first, so
that the largest rectangle (and an out-of-memory error, if there is to be one) comes first. Packed, rows stand one
behind the other; what the rows of a group begin with then counts once, where it is computed once. Where the model's
own attention keeps them apart, several data share a row of the rectangle (`row_filling`).

Positions after the last target that counts can neither be seen by an earlier position (attention is causal) nor reach
the loss; they are not computed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from finetooth_hooks import Datum
from finetooth_hooks.entries import Together

from finetooth_steps.groups import group_indices
from finetooth_steps.micro_batches import MicroBatch, computed_length
from finetooth_steps.row_filling import LEAST_SAVED, Filling, fill_rows

SHORTEST_SHARED = 16
"""Tokens in common from which sharing pays: below, the extra calls cost more than the positions saved."""


LEAST_SAVED_ON_A_GPU = 0.125
"""On an H100 the pass over what is below shared beginnings takes 7 % of the layers of 8 billion parameters."""


def least_saved(device: str) -> float:
    """What sharing must save (`worth_sharing`) on a kind of device. On a CPU a segment costs next to nothing."""
    return 0.0 if device == "cpu" else LEAST_SAVED_ON_A_GPU


def worth_sharing(common: int, lengths: Sequence[int], least: float) -> bool:
    """Whether rows that begin alike are computed faster with one beginning.

    Args:
        common: tokens that all begin with.
        lengths: of the rows, with them.
        least: positions that sharing must save for each position that is left below the beginning. Attention of these
            to the beginning is a pass of its own, which on a GPU costs a share of a layer.
    """
    saved = (len(lengths) - 1) * common
    return common >= SHORTEST_SHARED and saved >= least * (sum(lengths) - len(lengths) * common)


@dataclass(frozen=True)
class _Unit:
    """Rows that stay together.

    Attributes:
        common: tokens that all of them begin with and that are computed once.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    common: int = 0

    @property
    def saved(self) -> int:
        return (len(self.rows) - 1) * self.common

    @property
    def size(self) -> int:
        return sum(self.lengths) - self.saved

    def cut(self, budget: int) -> list[_Unit]:
        """As few parts as have room in the budget each, nearly equal, in order."""
        own = [length - self.common for length in self.lengths]
        room = max(1, budget - self.common)
        share = sum(own) / math.ceil(sum(own) / room) if any(own) else 1.0
        parts: list[list[int]] = [[]]
        filled = 0
        for place, size in enumerate(own):
            if parts[-1] and (filled + size > room or filled >= share):
                parts.append([])
                filled = 0
            parts[-1].append(place)
            filled += size
        return [
            _Unit(tuple(self.rows[i] for i in part), tuple(self.lengths[i] for i in part), self.common)
            for part in parts
        ]


def lay_out(
    data: Sequence[Datum],
    *,
    budget: int,
    together: Together = "sequence",
    whole: bool = False,
    packed: bool = False,
    shares: bool = False,
    least_saved: float = 0.0,
    filling: Filling | None = None,
) -> tuple[MicroBatch, ...]:
    """Cut a step into micro-batches.

    Args:
        data: of the step; `check_data` has seen them.
        budget: most positions of one micro-batch, padding included.
        together: with `group`, a group is never cut, and one that exceeds the budget becomes a micro-batch with
            pieces; otherwise every sequence goes where it fits.
        whole: compute every position, also those after the last target that counts.
        packed: rows stand one behind the other, so only their sum counts; micro-batches get equal shares.
        shares: packed rows that begin alike share their beginning. Rows of a group then stay together as far as the
            budget allows.
        least_saved: by sharing, as `worth_sharing` has it.
        filling: how data may share rows, where that saves `LEAST_SAVED` of the positions; None for not at all. Groups
            that must stay together, and data with images, sounds or position ids of their own, do not share.
    """
    lengths = [len(datum) if whole else computed_length(datum) for datum in data]
    shares = packed and shares and all(datum.positions is None and datum.parents is None for datum in data)
    units = [_Unit((i,), (lengths[i],)) for i in range(len(data))]
    if together == "group" or shares:
        starts = np.flatnonzero(np.diff(group_indices(data), prepend=-1))
        rows = [tuple(int(i) for i in unit) for unit in np.split(np.arange(len(data)), starts[1:])]
        units = [
            _Unit(of, tuple(lengths[i] for i in of), _common(data, of, lengths, least_saved) if shares else 0)
            for of in rows
        ]
    alike = all(datum.positions is None and not datum.media for datum in data)
    if filling is not None and together != "group" and alike:
        return filled(lengths, budget, filling)
    if together != "group":
        units = [part for unit in units for part in (unit.cut(budget) if unit.size > budget else [unit])]
    return tuple(_in_pieces(batch, budget) for batch in _batches(units, budget, packed=packed))


def filled(lengths: Sequence[int], budget: int, filling: Filling | None) -> tuple[MicroBatch, ...]:
    """Micro-batches of sequences in which data share rows, if that saves enough; else padded rectangles.

    Args:
        lengths: positions of each datum.
    """
    units = [_Unit((i,), (length,)) for i, length in enumerate(lengths)]
    padded = _batches(units, budget, packed=False)
    if filling is None:
        return tuple(padded)
    if filling == "stream":
        shared = [_in_rows([[row for unit in batch for row in unit.rows]], lengths) for batch in _even(units, budget)]
    else:
        shared = [_in_rows(rows, lengths) for rows in fill_rows(lengths, budget)]
    saved = 1 - sum(batch.positions for batch in shared) / sum(batch.positions for batch in padded)
    return tuple(shared if saved >= LEAST_SAVED else padded)


def _in_rows(rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> MicroBatch:
    """A micro-batch of rows that hold these data."""
    members = sorted(index for row in rows for index in row)
    if len(members) == len(rows):  # nothing shares a row
        return MicroBatch(tuple(members), tuple(lengths[i] for i in members))
    place = {index: at for at, index in enumerate(members)}
    return MicroBatch(
        tuple(members),
        tuple(lengths[i] for i in members),
        filled=tuple(tuple(place[index] for index in row) for row in rows),
    )


def _common(data: Sequence[Datum], rows: Sequence[int], lengths: Sequence[int], least: float) -> int:
    """Tokens that all rows begin with; 0 if sharing them is not worth it."""
    if len(rows) == 1:
        return 0
    shortest = min(lengths[row] for row in rows)
    tokens = np.stack([data[row].tokens[:shortest] for row in rows])
    differs = np.flatnonzero((tokens != tokens[0]).any(0))
    common = int(differs[0]) if differs.size else shortest
    return common if worth_sharing(common, [lengths[row] for row in rows], least) else 0


def _batches(units: Sequence[_Unit], budget: int, *, packed: bool) -> list[MicroBatch]:
    """Units into micro-batches within the budget, but for a unit that exceeds it."""
    units = sorted(units, key=lambda unit: -max(unit.lengths))  # a stable sort: equal lengths keep their order
    batches = _even(units, budget) if packed else _rectangles(units, budget)
    made = []
    for batch in batches:
        rows = sorted((row, length) for unit in batch for row, length in zip(unit.rows, unit.lengths, strict=True))
        shared = sum(unit.saved for unit in batch)
        made.append(MicroBatch(tuple(row for row, _ in rows), tuple(length for _, length in rows), packed, shared))
    return made


def _in_pieces(batch: MicroBatch, budget: int) -> MicroBatch:
    """The micro-batch; a group that exceeds the budget with pieces that do not."""
    if batch.positions <= budget or len(batch.rows) == 1:
        return batch
    common = batch.shared // (len(batch.rows) - 1)
    if batch.packed:
        parts = _Unit(batch.rows, batch.lengths, common).cut(budget)
        return replace(batch, pieces=tuple(piece for part in parts for piece in _batches([part], budget, packed=True)))
    rows = [_Unit((row,), (length,)) for row, length in zip(batch.rows, batch.lengths, strict=True)]
    return replace(batch, pieces=tuple(_batches(rows, budget, packed=False)))


def _rectangles(units: Sequence[_Unit], budget: int) -> list[list[_Unit]]:
    """Longest first; a unit joins those before it as long as the padded rectangle fits."""
    batches: list[list[_Unit]] = []
    width = count = 0
    for unit in units:
        if not batches or (count + len(unit.rows)) * width > budget:
            batches.append([])
            width, count = max(unit.lengths), 0
        batches[-1].append(unit)
        count += len(unit.rows)
    return batches


def _even(units: Sequence[_Unit], budget: int) -> list[list[_Unit]]:
    """Share units out, longest first, each to the micro-batch that holds least; as few as the budget allows."""
    order = sorted(units, key=lambda unit: -unit.size)
    count = max(1, math.ceil(sum(unit.size for unit in units) / budget))
    while True:
        batches: list[list[_Unit]] = [[] for _ in range(count)]
        loads = [(0, place) for place in range(count)]  # a heap
        for unit in order:
            load, place = loads[0]
            heapq.heapreplace(loads, (load + unit.size, place))
            batches[place].append(unit)
        # one more helps where a micro-batch of several units is too full
        if all(load <= budget or len(batches[place]) == 1 for load, place in loads):
            return [batch for batch in batches if batch]
        count += 1 + count // 50
