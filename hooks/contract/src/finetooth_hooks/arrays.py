"""Array functions that NumPy, torch and MLX share, for losses.

    from finetooth_hooks import arrays as xp

    def hinge(outputs, data, state):
        margins = xp.relu(1.0 - outputs["scores"])
        return LossResult({"hinge": Contribution(xp.sum(margins), per="sequences")})

Every function finds the library of its arguments and calls that library's own function, so gradients are the library's.
A Python number is accepted wherever an array is; NumPy arrays next to arrays of another library are converted (floats
to that array's type), so a state of NumPy arrays needs no change. Arithmetic (`+ - * / ** @`), comparison and basic
slicing are the arrays' own operators. Nothing is imported: the library of an array is already loaded.

At ties (`maximum` of equal values, `relu` and `abs` at 0, `clip` at its bounds) each library has its own subgradient.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from finetooth_hooks.compute.array_libraries import ArrayLibrary, MlxLibrary, TorchLibrary

Array = Any
"""torch.Tensor, mlx.core.array, numpy.ndarray, or an array of a registered library; or a Python number."""

_MAKERS: dict[str, Callable[[], ArrayLibrary]] = {
    "torch": lambda: TorchLibrary(sys.modules["torch"]),
    "mlx": lambda: MlxLibrary(sys.modules["mlx.core"]),
}
_LIBRARIES: dict[str, ArrayLibrary] = {}
_OF_TYPE: dict[type, ArrayLibrary | None] = {}
_NUMBERS = (bool, int, float)


def register(prefix: str, library: ArrayLibrary | Callable[[], ArrayLibrary]) -> None:
    """Register another array library.

    Args:
        prefix: first part of the module path of its array types, `jax`.
        library: its functions, usually a subclass of `ArrayLibrary`; or a function that makes it on first use.

    Raises:
        ValueError: the prefix is taken.
    """
    if prefix == "numpy" or prefix in _MAKERS:
        raise ValueError(f"arrays of {prefix!r} already have their functions")
    _MAKERS[prefix] = (lambda: library) if isinstance(library, ArrayLibrary) else library
    _OF_TYPE.clear()


def _of_type(cls: type) -> ArrayLibrary | None:
    """The library of an array type; None for NumPy, whose arrays mix with any other."""
    for base in cls.__mro__:
        prefix = base.__module__.partition(".")[0]
        if prefix in _MAKERS:
            if prefix not in _LIBRARIES:
                _LIBRARIES[prefix] = _MAKERS[prefix]()
            return _LIBRARIES[prefix]
        if prefix == "numpy":
            return None
    raise TypeError(f"{cls.__module__}.{cls.__qualname__} is not an array that finetooth_hooks.arrays knows")


def library(*values: Any) -> ArrayLibrary:
    """The functions of the library of `values`; NumPy's if all are numbers or NumPy arrays.

    Raises:
        TypeError: a value is neither an array nor a number, or two libraries are mixed.
    """
    used: ArrayLibrary | None = None
    for value in values:
        cls = type(value)
        if cls in _NUMBERS or value is None:
            continue
        if cls not in _OF_TYPE:
            _OF_TYPE[cls] = _of_type(cls)
        candidate = _OF_TYPE[cls]
        if candidate is None or candidate is used:
            continue
        if used is not None:
            names = ", ".join(f"{type(v).__module__}.{type(v).__qualname__}" for v in values)
            raise TypeError(f"arrays of different libraries in one call: {names}")
        used = candidate
    return used or _numpy()


def _numpy() -> ArrayLibrary:
    if "numpy" not in _LIBRARIES:
        import numpy as np

        _LIBRARIES["numpy"] = ArrayLibrary(np)
    return _LIBRARIES["numpy"]


# --- element by element -----------------------------------------------------------------------------------------------


def exp(x: Array) -> Array:
    """e to the x."""
    return library(x).exp(x)


def log(x: Array) -> Array:
    """Natural logarithm."""
    return library(x).log(x)


def log1p(x: Array) -> Array:
    """log(1 + x), exact for small x."""
    return library(x).log1p(x)


def expm1(x: Array) -> Array:
    """exp(x) - 1, exact for small x."""
    return library(x).expm1(x)


def sqrt(x: Array) -> Array:
    """Square root."""
    return library(x).sqrt(x)


def square(x: Array) -> Array:
    """x times x."""
    return library(x).square(x)


def abs(x: Array) -> Array:
    """Absolute value."""
    return library(x).abs(x)


def tanh(x: Array) -> Array:
    """Hyperbolic tangent."""
    return library(x).tanh(x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return library(x).sigmoid(x)


def log_sigmoid(x: Array) -> Array:
    """log(sigmoid(x)), without overflow or a logarithm of zero: close to x far below zero."""
    return library(x).log_sigmoid(x)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), which is -log_sigmoid(-x)."""
    return -library(x).log_sigmoid(-x)


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return library(x).relu(x)


def maximum(a: Array, b: Array) -> Array:
    """The larger one, element by element; NaN if one is NaN."""
    return library(a, b).maximum(a, b)


def minimum(a: Array, b: Array) -> Array:
    """The smaller one, element by element; NaN if one is NaN."""
    return library(a, b).minimum(a, b)


def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """x limited to `low` and `high`; None: no limit. The gradient is zero outside."""
    return library(x, low, high).clip(x, low, high)


def where(condition: Array, a: Array, b: Array) -> Array:
    """`a` where the condition is true, else `b`.

    The gradient of the other side is zero times its derivative, so that side must be finite too.
    """
    return library(condition, a, b).where(condition, a, b)


def isfinite(x: Array) -> Array:
    """Bool: neither NaN nor infinite."""
    return library(x).isfinite(x)


def logical_and(a: Array, b: Array) -> Array:
    """Bool: both."""
    return library(a, b).logical_and(a, b)


def logical_or(a: Array, b: Array) -> Array:
    """Bool: at least one."""
    return library(a, b).logical_or(a, b)


def logical_not(x: Array) -> Array:
    """Bool: not x."""
    return library(x).logical_not(x)


# --- over an axis -----------------------------------------------------------------------------------------------------


def sum(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Sum over one axis, or over all. A sum of bools counts."""
    return library(x).sum(x, axis=axis, keepdims=keepdims)


def mean(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Mean over one axis, or over all. A mean of bools is a share.

    Padding counts: for a mean where the mask is true, divide sums.
    """
    return library(x).mean(x, axis=axis, keepdims=keepdims)


def max(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Largest value over one axis, or over all."""
    return library(x).max(x, axis=axis, keepdims=keepdims)


def min(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Smallest value over one axis, or over all."""
    return library(x).min(x, axis=axis, keepdims=keepdims)


def any(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Bool: true somewhere along the axis."""
    return library(x).any(x, axis=axis, keepdims=keepdims)


def all(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Bool: true everywhere along the axis."""
    return library(x).all(x, axis=axis, keepdims=keepdims)


def logsumexp(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """log(sum(exp(x))), without overflow."""
    return library(x).logsumexp(x, axis=axis, keepdims=keepdims)


def cumsum(x: Array, axis: int = -1) -> Array:
    """Running sum along an axis."""
    return library(x).cumsum(x, axis=axis)


def sort(x: Array, axis: int = -1, ascending: bool = True) -> Array:
    """Sorted along an axis; gradients go back to each value's original place."""
    return library(x).sort(x, axis=axis, ascending=ascending)


def argsort(x: Array, axis: int = -1, ascending: bool = True) -> Array:
    """Indices that sort x along an axis; equal values keep their order."""
    return library(x).argsort(x, axis=axis, ascending=ascending)


def take(x: Array, indices: Array, axis: int = 0) -> Array:
    """Whole slices of x by their index along an axis: shape of x with that axis replaced by the shape of `indices`."""
    return library(x, indices).take(x, indices, axis=axis)


def take_along_axis(x: Array, indices: Array, axis: int = -1) -> Array:
    """One value for each index along an axis; `indices` has as many dimensions as x."""
    return library(x, indices).take_along_axis(x, indices, axis=axis)


def segment_sum(x: Array, segments: Array, count: int) -> Array:
    """Sum of the slices of x by segment.

    Args:
        x: (S, ...) values.
        segments: (S,) index of the segment each slice belongs to, such as `LossData.group`.
        count: number of segments.

    Returns:
        (count, ...) sums; 0 for an empty segment.
    """
    return library(x, segments).segment_sum(x, segments, count)


# --- shapes and types -------------------------------------------------------------------------------------------------


def stack(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Arrays of one shape along a new axis."""
    return library(*arrays).stack(arrays, axis=axis)


def concat(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Arrays one after the other along an axis."""
    return library(*arrays).concat(arrays, axis=axis)


def reshape(x: Array, shape: Sequence[int]) -> Array:
    """Same values in another shape; one length may be -1."""
    return library(x).reshape(x, tuple(shape))


def zeros_like(x: Array) -> Array:
    """Zeros with the shape, type and device of x."""
    return library(x).zeros_like(x)


def ones_like(x: Array) -> Array:
    """Ones with the shape, type and device of x."""
    return library(x).ones_like(x)


def full_like(x: Array, value: float) -> Array:
    """`value` in the shape, type and device of x."""
    return library(x).full_like(x, value)


def arange(stop: int, like: Array) -> Array:
    """0 to stop - 1 as integers, in the library and on the device of `like`."""
    return library(like).arange(stop, like)


def asarray(values: Any, like: Array) -> Array:
    """NumPy values or numbers as an array of the library and on the device of `like`; floats take its float type."""
    return library(like).asarray(values, like)


def astype_like(x: Array, like: Array) -> Array:
    """x in the type of `like`, such as a bool mask made to multiply with."""
    return library(x, like).astype_like(x, like)


def stop_gradient(x: Array) -> Array:
    """x as a constant: no gradient flows through it."""
    return library(x).stop_gradient(x)


def to_numpy(x: Array) -> Array:
    """x as a NumPy array in host memory, a constant."""
    return library(x).to_numpy(x)


def item(x: Array) -> float:
    """An array of one element as a Python float. It waits for the device: use it for states, not inside a loss's
    arithmetic."""
    return library(x).item(x)
