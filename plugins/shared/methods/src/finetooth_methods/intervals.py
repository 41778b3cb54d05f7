"""Intervals of shares, and how well probabilities are calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""Deviations within which 95 % of a normal distribution lie."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927): with z = 1.96 and n the count:

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Unlike p -+ z sqrt(p (1 - p) / n) it has a width where the share is 0 or 1.

    Args:
        share: 0 to 1.
        count: how many it is a share of; 0 gives 0 to 1.
    """
    if not count:
        return 0.0, 1.0
    middle = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def bootstrap(
    items: Sequence[Any], statistic: Callable[[Sequence[Any]], float], random: np.random.Generator, draws: int = 1000
) -> tuple[float, float]:
    """The 95 % interval of a statistic of independent items by drawing as many of them with replacement (the percentile
    bootstrap, Efron, 1979). Dependent values, such as the steps of one answer, are one item.

    Args:
        statistic: not a number where some draw has none; such draws are left out.
    """
    values = []
    for _ in range(draws):
        value = statistic([items[i] for i in random.integers(len(items), size=len(items))])
        if math.isfinite(value):
            values.append(value)
    if not values:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def calibration_error(probabilities: NDArray[np.float64], happened: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error (Naeini et al., 2015): in bins of equal width, how far the mean probability lies from
    the share that happened, weighted by the number in each bin.

    Args:
        probabilities: (N,) between 0 and 1.
        happened: (N,).
    """
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    error = 0.0
    for b in range(bins):
        inside = place == b
        if inside.any():
            error += inside.mean() * abs(probabilities[inside].mean() - happened[inside].mean())
    return float(error)
