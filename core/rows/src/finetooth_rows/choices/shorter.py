"""What shorter rows leave of a run's data, by their lengths."""

from __future__ import annotations

import math
from dataclasses import replace

from finetooth_hooks.protocols import DataPart


def shortened(data: DataPart, longest: int, others: int) -> DataPart:
    """Data of which no row of those that are shortened is longer.

    Args:
        others: positions of the longest row that stays.
    """
    return replace(
        data,
        longest=min(data.longest, max(longest, others)),
        longest_id="",
        mean_length=min(data.mean_length, longest),
        length_deviation=min(data.length_deviation, longest / 2),
        lengths=tuple(min(length, longest) for length in data.lengths),
        beginning=min(data.beginning, longest),
    )


def least_length(data: DataPart, excess: str) -> int:
    """The least `train.max_length` that leaves half of the rows: whole, or with something to train; 0 if unknown.

    Args:
        excess: `train.excess_length`.
    """
    if excess == "raise":
        return data.longest
    if not data.lengths:
        return 0
    share = 1.0 if excess == "drop" else 1.0 - data.trained_share
    return math.ceil(1.05 * share * data.lengths[len(data.lengths) // 2]) + 1  # lengths are known within 5 %
