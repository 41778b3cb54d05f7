"""From data to what a loss sees, to counts, and to micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from finetooth_hooks import Datum, LossData
from numpy.typing import NDArray


def pad(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """(S, T, ...): rows of different lengths, zeros after their end."""
    if np.ndim(rows[0]) == 0:  # a number per sequence
        return np.array(rows)
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, ((0, longest - len(row)), *[(0, 0)] * (row.ndim - 1))) for row in rows])


def weights_of(datum: Datum) -> NDArray[np.float64]:
    """1 where the mask is true unless the data says otherwise, 0 where it is false."""
    given = datum.fields.get("weights", np.ones(len(datum)))
    mask = datum.mask.reshape(-1, *[1] * (given.ndim - 1))
    return np.where(mask, given, 0.0).astype(np.float64)


def blocks(data: Sequence[Datum]) -> list[list[int]]:
    """Indices of adjacent data with the same group key; one without a key stands alone."""
    found: list[list[int]] = []
    for i, datum in enumerate(data):
        if i and datum.group is not None and datum.group == data[i - 1].group:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def loss_data(data: Sequence[Datum]) -> LossData:
    """The rectangle of some data."""
    group = np.zeros(len(data), dtype=np.int64)
    for index, block in enumerate(blocks(data)):
        group[block] = index
    names = {name for datum in data for name in datum.fields} - {"weights"}
    scalars = {name for datum in data for name in datum.scalars}
    targets = [np.where(d.mask.reshape(-1, *[1] * (d.targets.ndim - 1)), d.targets, 0) for d in data]
    return LossData(
        mask=pad([datum.mask for datum in data]),
        targets=pad(targets),
        fields={
            "weights": pad([weights_of(datum) for datum in data]),
            **{n: pad([d.fields.get(n, np.zeros(len(d))).astype(np.float64) for d in data]) for n in sorted(names)},
        },
        scalars={n: np.array([d.scalars.get(n, 0.0) for d in data]) for n in sorted(scalars)},
        group=group,
    )


def counts(data: Sequence[Datum]) -> dict[str, float]:
    """Every normalizer of a step."""
    return {
        "weights": float(sum(weights_of(datum).sum() for datum in data)),
        "tokens": float(sum(datum.mask.sum() for datum in data)),
        "sequences": float(sum(datum.mask.any() for datum in data)),
        "groups": float(len(blocks(data))),
        "none": 1.0,
    }


def micro_batches(data: Sequence[Datum], budget: int, together: str) -> list[list[int]]:
    """Indices by micro-batch, at most `budget` positions with padding; groups stay whole if the loss asks for it."""
    units = blocks(data) if together == "group" else [[i] for i in range(len(data))]
    found: list[list[int]] = []
    for unit in units:
        candidate = [*(found[-1] if found else []), *unit]
        if found and max(len(data[i]) for i in candidate) * len(candidate) <= budget:
            found[-1] = candidate
        else:
            found.append(list(unit))
    return found
