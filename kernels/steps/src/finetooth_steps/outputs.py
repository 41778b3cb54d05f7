"""Arrays of each datum side by side in a rectangle, and cut back to each datum's own positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from finetooth_hooks import Datum, OutputName
from finetooth_hooks import arrays as xp
from numpy.typing import NDArray

from finetooth_steps.micro_batches import MicroBatch


def is_whole(name: str) -> bool:
    """Whether an output is given at every position, not only where the mask is true: hidden states and logits."""
    return OutputName.of(name).kind in ("hidden", "logits")


def side_by_side(batch: MicroBatch, values: Sequence[NDArray[Any]] | Mapping[int, NDArray[Any]]) -> NDArray[Any]:
    """(S, T, ...) of the rows of a micro-batch, 0 where they are padded; or (S,), of a number each.

    Args:
        values: by index of the datum, (N, ...) or ().
    """
    rows = [np.asarray(values[index]) for index in batch.rows]
    dtype = np.result_type(*rows)
    if rows[0].ndim == 0:  # a number per sequence
        return np.array(rows, dtype=dtype)
    rectangle = np.zeros((len(rows), batch.width, *rows[0].shape[1:]), dtype=dtype)
    for s, (row, n) in enumerate(zip(rows, batch.lengths, strict=True)):
        rectangle[s, :n] = row[:n]
    return rectangle


def per_datum(data: Sequence[Datum], batch: MicroBatch, values: xp.Array) -> dict[int, NDArray[Any]]:
    """Rows of (S, T, ...) cut back to each datum's N positions, 0 where they were not computed, or elements of (S,); by
    index of the datum, as NumPy arrays."""
    array = xp.to_numpy(values)
    if array.ndim == 1:  # a number per sequence
        return {index: array[s] for s, index in enumerate(batch.rows)}
    rows: dict[int, NDArray[Any]] = {}
    for s, (index, n) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
        whole = np.zeros((len(data[index]), *array.shape[2:]), dtype=array.dtype)
        whole[:n] = array[s, :n]
        rows[index] = whole
    return rows
