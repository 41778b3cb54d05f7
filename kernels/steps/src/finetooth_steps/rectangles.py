"""A micro-batch as arrays, for the model and for a loss.

They are built in NumPy (ids int64, floats float64); an engine says how one of them becomes an array of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from finetooth_hooks import Datum, LossData, MediumChunk
from numpy.typing import NDArray

from finetooth_steps.groups import group_indices
from finetooth_steps.micro_batches import MicroBatch
from finetooth_steps.segments import Piece, pieces_of

Array = TypeVar("Array")
"""An array of the engine's library."""


@dataclass(frozen=True)
class PlacedMedium:
    """An image, sound or video in a rectangle: its row and the columns it takes."""

    row: int
    start: int
    chunk: MediumChunk


@dataclass(frozen=True)
class OnHost:
    """The source of a rectangle, in NumPy, so that its layout is known without a device.

    Attributes:
        tokens, mask: (S, T).
        positions: (S, T), None for 0..T-1 in every row.
    """

    tokens: NDArray[np.int64]
    mask: NDArray[np.bool_]
    positions: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Rectangle(Generic[Array]):
    """S rows of T positions, padded on the right.

    Attributes:
        batch: which data, and how long.
        tokens: (S, T) input ids.
        positions: (S, T) position ids, None for 0..T-1 in every row.
        mask: (S, T) targets that count.
        targets: (S, T) or (S, T, K), 0 where the mask is false.
        pieces: of each row, the pieces of its segments; None if every row is one.
        media: row by row, in order.
        counted: (M,) where the mask is true, among S T cells in order; None: unknown.
        host: the same arrays in NumPy; None: they were made elsewhere.
    """

    batch: MicroBatch
    tokens: Array
    positions: Array | None
    mask: Array
    targets: Array
    pieces: tuple[tuple[Piece, ...], ...] | None = None
    media: tuple[PlacedMedium, ...] = ()
    counted: Array | None = None
    host: OnHost | None = None


def make_rectangle(
    data: Sequence[Datum], batch: MicroBatch, *, pad_id: int, convert: Callable[[NDArray[Any]], Array]
) -> Rectangle[Array]:
    """Arrays of `batch`. Causal attention never looks right, so what pads is never read.

    Args:
        data: of the call; `check_data` has seen them.
        pad_id: any valid token id.
        convert: makes an array of the engine's library of one of NumPy.
    """
    shape = len(batch.rows), batch.width
    tokens = np.full(shape, pad_id, dtype=np.int64)
    positions = np.tile(np.arange(batch.width, dtype=np.int64), (shape[0], 1))
    has_positions = False
    media: list[PlacedMedium] = []
    for s, (index, n) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
        datum = data[index]
        tokens[s, :n] = datum.placeholder_tokens[:n]
        media += [PlacedMedium(s, start, chunk) for start, chunk in datum.media if start < n]
        if datum.positions is not None:
            has_positions = True
            positions[s, :n] = datum.positions[:n]
            positions[s, n:] = datum.positions[n - 1]
    pieces = tuple(pieces_of(data[index], n) for index, n in zip(batch.rows, batch.lengths, strict=True))
    segmented = any(len(of) > 1 for of in pieces)
    mask, targets = _mask_and_targets(data, batch)
    placed = positions if has_positions and not segmented else None
    return Rectangle(
        batch=batch,
        tokens=convert(tokens),
        positions=None if placed is None else convert(placed),
        mask=convert(mask),
        targets=convert(targets),
        pieces=pieces if segmented else None,
        media=tuple(media),
        counted=convert(np.flatnonzero(mask)),
        host=OnHost(tokens, mask, placed),
    )


def loss_data(
    data: Sequence[Datum],
    batch: MicroBatch,
    convert: Callable[[NDArray[Any]], Array],
    *,
    rectangle: Rectangle[Array] | None = None,
) -> LossData:
    """A loss's view of a micro-batch.

    Args:
        data: of the call; `check_fields` has seen them.
        convert: makes an array of the engine's library of one of NumPy; fields and scalars come as float64, to become
            the floats that the engine computes losses in.
        rectangle: of the same micro-batch, if the engine made one: its mask and targets are taken as they are.
    """
    members = [data[index] for index in batch.rows]
    names = {name for datum in members for name in datum.fields} - {"weights"}
    scalars = {name for datum in members for name in datum.scalars}
    if rectangle is None:
        mask, targets = map(convert, _mask_and_targets(data, batch))
    else:
        mask, targets = rectangle.mask, rectangle.targets
    return LossData(
        mask=mask,
        targets=targets,
        fields={name: convert(_field(members, batch, name)) for name in ["weights", *sorted(names)]},
        scalars={
            name: convert(np.array([float(datum.scalars[name]) for datum in members], dtype=np.float64))
            for name in sorted(scalars)
        },
        group=convert(group_indices(members)),
    )


def _mask_and_targets(data: Sequence[Datum], batch: MicroBatch) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    shape = len(batch.rows), batch.width
    mask = np.zeros(shape, dtype=np.bool_)
    targets = np.zeros(shape + data[batch.rows[0]].targets.shape[1:], dtype=np.int64)
    for s, (index, n) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
        mask[s, :n] = data[index].mask[:n]
        targets[s, :n] = data[index].targets[:n]
        targets[s][~mask[s]] = 0
    return mask, targets


def _field(members: Sequence[Datum], batch: MicroBatch, name: str) -> NDArray[np.float64]:
    """(S, T) or (S, T, K) values of a field, 0 where padded."""
    columns = next((d.fields[name].shape[1:] for d in members if name in d.fields), ())
    values = np.zeros((len(members), batch.width, *columns))
    for s, (datum, n) in enumerate(zip(members, batch.lengths, strict=True)):
        array = datum.fields.get(name)
        if array is None:  # only `weights` may be absent
            counts = datum.mask[:n].astype(np.float64)
            values[s, :n] = counts if not columns else counts[:, None]
        else:
            values[s, :n] = array[:n]
    return values
