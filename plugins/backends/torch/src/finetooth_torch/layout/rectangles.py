"""A micro-batch as tensors: what the model reads and what a loss sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from finetooth_hooks import Datum, ImageChunk, LossData
from finetooth_steps.layout import MicroBatch, group_indices
from finetooth_steps.segments import WHOLE, starts_of
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PlacedImage:
    """An image in a rectangle: its row and the columns it takes."""

    row: int
    start: int
    chunk: ImageChunk


@dataclass(frozen=True)
class Rectangle:
    """S rows of T positions, padded on the right.

    Attributes:
        batch: which data, and how long.
        tokens: (S, T) input ids.
        positions: (S, T) position ids, None for 0..T-1 in every row.
        mask: (S, T) targets that count.
        targets: (S, T) or (S, T, K), 0 where the mask is false.
        starts: of each row, where its segments begin; None if every row is one segment.
        images: row by row, in order.
    """

    batch: MicroBatch
    tokens: Tensor
    positions: Tensor | None
    mask: Tensor
    targets: Tensor
    starts: tuple[tuple[int, ...], ...] | None = None
    images: tuple[PlacedImage, ...] = ()


def make_rectangle(data: Sequence[Datum], batch: MicroBatch, *, pad_id: int, device: torch.device) -> Rectangle:
    """Tensors of `batch` on `device`. Causal attention never looks right, so what pads is never read."""
    shape = len(batch.rows), batch.width
    tokens = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.bool_)
    targets = np.zeros(shape + data[batch.rows[0]].targets.shape[1:], dtype=np.int64)
    positions = np.tile(np.arange(batch.width, dtype=np.int64), (shape[0], 1))
    given = False
    images: list[PlacedImage] = []
    for s, (index, n) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
        datum = data[index]
        tokens[s, :n] = datum.placeholder_tokens[:n]
        images += [PlacedImage(s, start, chunk) for start, chunk in datum.images if start < n]
        mask[s, :n] = datum.mask[:n]
        targets[s, :n] = datum.targets[:n]
        targets[s][~mask[s]] = 0
        if datum.positions is not None:
            given = True
            positions[s, :n] = datum.positions[:n]
            positions[s, n:] = datum.positions[n - 1]
    starts = tuple(starts_of(data[index]) for index in batch.rows)
    segmented = any(of != WHOLE for of in starts)
    return Rectangle(
        batch=batch,
        tokens=torch.from_numpy(tokens).to(device),
        positions=torch.from_numpy(positions).to(device) if given and not segmented else None,
        mask=torch.from_numpy(mask).to(device),
        targets=torch.from_numpy(targets).to(device),
        starts=starts if segmented else None,
        images=tuple(images),
    )


def loss_data(data: Sequence[Datum], rectangle: Rectangle, dtype: torch.dtype) -> LossData:
    """What a loss sees of a rectangle.

    Args:
        data: of the step; `check_fields` has seen them.
        dtype: of fields and scalars.
    """
    batch, device = rectangle.batch, rectangle.mask.device
    members = [data[index] for index in batch.rows]
    names = {name for datum in members for name in datum.fields} - {"weights"}
    scalar_names = {name for datum in members for name in datum.scalars}

    def padded(name: str) -> Tensor:
        columns = next((d.fields[name].shape[1:] for d in members if name in d.fields), ())
        values = np.zeros((len(members), batch.width, *columns))
        for s, (datum, n) in enumerate(zip(members, batch.lengths, strict=True)):
            array = datum.fields.get(name)
            if array is None:  # only `weights` may be absent
                counts = datum.mask[:n].astype(np.float64)
                values[s, :n] = counts if not columns else counts[:, None]
            else:
                values[s, :n] = array[:n]
        return torch.from_numpy(values).to(device=device, dtype=dtype)

    return LossData(
        mask=rectangle.mask,
        targets=rectangle.targets,
        fields={name: padded(name) for name in ["weights", *sorted(names)]},
        scalars={
            name: torch.tensor([float(d.scalars[name]) for d in members], device=device, dtype=dtype)
            for name in sorted(scalar_names)
        },
        group=torch.from_numpy(group_indices(members)).to(device),
    )


def per_datum(data: Sequence[Datum], batch: MicroBatch, values: Tensor) -> dict[int, NDArray[Any]]:
    """Rows of (S, T, ...) cut back to each datum's N positions, 0 where they were not computed, or elements of (S,); by
    index of the datum."""
    array = values.detach().to("cpu").numpy()
    if array.ndim == 1:  # a number per sequence
        return {index: array[s] for s, index in enumerate(batch.rows)}
    rows: dict[int, NDArray[Any]] = {}
    for s, (index, n) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
        whole = np.zeros((len(data[index]), *array.shape[2:]), dtype=array.dtype)
        whole[:n] = array[s, :n]
        rows[index] = whole
    return rows
