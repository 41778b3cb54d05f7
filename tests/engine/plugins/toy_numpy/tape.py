"""Gradients of losses in NumPy through HIPS autograd, a fourth library of `finetooth_hooks.arrays`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from autograd.tracer import getval
from finetooth_hooks import arrays
from finetooth_hooks.compute.array_libraries import ArrayLibrary


class TapeLibrary(ArrayLibrary):
    """autograd.numpy, with what it cannot differentiate written by indexing and matrix products."""

    def __init__(self) -> None:
        super().__init__(anp)

    def argsort(self, x: Any, axis: int, ascending: bool) -> Any:
        values = getval(x)
        return np.argsort(values if ascending else -values, axis=axis, kind="stable")

    def take_along_axis(self, x: Any, indices: Any, axis: int) -> Any:
        grid = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
        grid[axis] = indices
        return x[tuple(grid)]

    def sort(self, x: Any, axis: int, ascending: bool) -> Any:
        return self.take_along_axis(x, self.argsort(x, axis, ascending), axis)

    def take(self, x: Any, indices: Any, axis: int) -> Any:
        return x[(slice(None),) * (axis % x.ndim) + (indices,)]

    def segment_sum(self, x: Any, segments: Any, count: int) -> Any:
        members = (np.arange(count)[:, None] == segments[None, :]).astype(np.float64)
        return anp.tensordot(members, x, axes=1)

    def astype_like(self, x: Any, like: Any) -> Any:
        return x.astype(getval(like).dtype)

    def zeros_like(self, x: Any) -> Any:
        return np.zeros_like(getval(x))

    def ones_like(self, x: Any) -> Any:
        return np.ones_like(getval(x))

    def full_like(self, x: Any, value: float) -> Any:
        return np.full_like(getval(x), value)

    def stop_gradient(self, x: Any) -> Any:
        return getval(x)

    def item(self, x: Any) -> float:
        return float(self.to_numpy(x))

    def to_numpy(self, x: Any) -> Any:
        value = x
        while value is not getval(value):
            value = getval(value)
        return np.asarray(value)


def join() -> None:
    """Register the tape's arrays, once."""
    with suppress(ValueError):  # registered by an earlier import
        arrays.register("autograd", TapeLibrary)


def gradients(
    function: Callable[..., Any], values: Sequence[np.ndarray[Any, Any]]
) -> tuple[float, list[np.ndarray[Any, Any]]]:
    """Value of a scalar function, and its gradient for each argument."""
    if not values:
        return float(function()), []
    with np.errstate(all="ignore"):  # what is not finite is looked for afterwards
        value, grads = value_and_grad(lambda parts: function(*parts))(tuple(values))
    return float(value), [np.asarray(grad) for grad in grads]
