"""The critic's loss against float64 NumPy, value and slope."""

from __future__ import annotations

import numpy as np
import pytest
from finetooth_hooks import DataError, LossData
from finetooth_policygradient.value import clipped_value

RANDOM = np.random.default_rng(11)
MASK = np.array([[True, True, True], [True, False, False]])
V, OLD, R = (RANDOM.normal(size=MASK.shape) for _ in range(3))
W = RANDOM.uniform(0.1, 1.0, MASK.shape) * MASK


def loss(values: np.ndarray, bound: float | None) -> float:
    fields = {"returns": R, "old_values": OLD, "token_weights": W}
    data = LossData(MASK, np.zeros(MASK.shape), fields, {}, np.arange(2))
    found = clipped_value({"values": np.where(MASK, values, np.nan)}, data, {}, bound=bound)
    return float(found.contributions["value"].total)


@pytest.mark.parametrize("bound", [0.2, 1.0, None])
def test_it_is_the_larger_error_of_the_value_and_of_the_clipped_one(bound: float | None) -> None:
    expected, slope = 0.0, np.zeros_like(V)
    for i in zip(*np.nonzero(MASK), strict=True):
        free, near = (V[i] - R[i]) ** 2, float("-inf")
        if bound is not None:
            near = (min(max(V[i], OLD[i] - bound), OLD[i] + bound) - R[i]) ** 2
        expected += W[i] / 2 * max(free, near)
        held = near > free  # a value beyond the bound no longer moves
        slope[i] = 0.0 if held else W[i] * (V[i] - R[i])
    assert loss(V, bound) == pytest.approx(expected, rel=1e-12)
    for i in zip(*np.nonzero(MASK), strict=True):
        step = np.zeros_like(V)
        step[i] = 1e-6
        assert (loss(V + step, bound) - loss(V - step, bound)) / 2e-6 == pytest.approx(slope[i], abs=1e-6)


def test_a_field_that_is_missing_is_named() -> None:
    data = LossData(MASK, np.zeros(MASK.shape), {"returns": R}, {}, np.arange(2))
    with pytest.raises(DataError, match="old_values"):
        clipped_value({"values": V}, data, {}, bound=0.2)
