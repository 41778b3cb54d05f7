"""Is a time linear in what was done? A fit by least squares, and how far the points lie from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class Fit:
    """Seconds as a sum of terms, each a count times a cost.

    Attributes:
        costs: seconds for one of each term, none below 0.
        residuals: (measured - fitted) / measured, in the order of the points.
    """

    costs: Mapping[str, float]
    residuals: tuple[float, ...]

    @property
    def typical(self) -> float:
        """Root of the mean square of the residuals."""
        return float(np.sqrt(np.mean(np.square(self.residuals))))

    @property
    def largest(self) -> float:
        """The largest residual, whatever its sign."""
        return max(map(abs, self.residuals))


def fit(terms: Mapping[str, Sequence[float]], seconds: Sequence[float]) -> Fit:
    """The costs, none below 0, with the least sum of squared relative residuals.

    Relative, so that a point of a second counts as much as one of an hour. With so few terms every choice of those that
    cost something is tried.

    Args:
        terms: counts by name, one for each point.
        seconds: of each point, above 0.

    Raises:
        ValueError: fewer points than terms.
    """
    names, measured = list(terms), np.asarray(seconds, dtype=float)
    if len(measured) < len(names):
        raise ValueError(f"{len(measured)} points cannot give {len(names)} costs")
    counts = np.array([terms[name] for name in names], dtype=float).T / measured[:, None]
    scale = np.abs(counts).max(axis=0)
    scale[scale == 0] = 1.0
    best: tuple[float, dict[str, float], tuple[float, ...]] | None = None
    for size in range(1, len(names) + 1):
        for chosen in combinations(range(len(names)), size):
            part = (counts / scale)[:, chosen]
            costs, *_ = np.linalg.lstsq(part, np.ones(len(measured)), rcond=None)
            residuals = 1.0 - part @ costs
            error = float(residuals @ residuals)
            if (costs >= 0).all() and (best is None or error < best[0]):
                found = {names[i]: float(cost / scale[i]) for i, cost in zip(chosen, costs, strict=True)}
                best = error, {name: found.get(name, 0.0) for name in names}, tuple(map(float, residuals))
    assert best is not None  # counts are not negative, so one term alone always has a cost above 0
    return Fit(best[1], best[2])
