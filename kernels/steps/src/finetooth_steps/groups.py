"""Groups: adjacent data of a step that belong together (a preference pair, the answers to one prompt)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from finetooth_hooks import DataError, Datum


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
