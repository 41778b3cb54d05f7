"""Implements the functions of `finetooth_hooks.arrays` with NumPy, torch and MLX.

`ArrayLibrary` uses a module with NumPy's names; a library overrides functions with other names. This module imports no
framework: the array's module is already loaded and is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Array = Any


class ArrayLibrary:
    """The functions over a module `np` that follows NumPy's names.

    Args:
        np: the module: `numpy`, or one like it.
    """

    def __init__(self, np: Any) -> None:
        self.np = np

    def __getattr__(self, name: str) -> Any:
        # Functions with NumPy's names need no line here.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.np, name)

    def sigmoid(self, x: Array) -> Array:
        return self.np.exp(self.log_sigmoid(x))

    def log_sigmoid(self, x: Array) -> Array:
        return -self.np.logaddexp(0.0, -x)

    def relu(self, x: Array) -> Array:
        return self.np.maximum(x, 0.0)

    def clip(self, x: Array, low: Array | None, high: Array | None) -> Array:
        return self.np.clip(x, low, high)

    def sort(self, x: Array, axis: int, ascending: bool) -> Array:
        return self.np.take_along_axis(x, self.argsort(x, axis, ascending), axis=axis)

    def argsort(self, x: Array, axis: int, ascending: bool) -> Array:
        return self.np.argsort(x if ascending else -x, axis=axis, kind="stable")

    def take(self, x: Array, indices: Array, axis: int) -> Array:
        return self.np.take(x, indices, axis=axis)

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return self.np.concatenate(list(arrays), axis=axis)

    def logsumexp(self, x: Array, axis: int | None, keepdims: bool) -> Array:
        peak = self.stop_gradient(self.np.max(x, axis=axis, keepdims=True))
        total = self.np.sum(self.np.exp(x - peak), axis=axis, keepdims=True)
        result = self.np.log(total) + peak
        return result if keepdims else self.np.squeeze(result, axis=axis)

    def segment_sum(self, x: Array, segments: Array, count: int) -> Array:
        result = self.np.zeros((count, *x.shape[1:]), dtype=x.dtype)
        self.np.add.at(result, segments, x)
        return result

    def arange(self, stop: int, like: Array) -> Array:
        return self.np.arange(stop)

    def asarray(self, values: Any, like: Array) -> Array:
        return self.np.asarray(values)

    def astype_like(self, x: Array, like: Array) -> Array:
        return self.np.asarray(x).astype(like.dtype)

    def stop_gradient(self, x: Array) -> Array:
        return x

    def item(self, x: Array) -> float:
        return float(x)

    def to_numpy(self, x: Array) -> Array:
        import numpy

        return numpy.asarray(x)


class TorchLibrary(ArrayLibrary):
    """torch needs tensors where others accept scalars, and calls axes dims."""

    def _tensor(self, x: Any, like: Array) -> Array:
        if isinstance(x, self.np.Tensor):
            return x
        if isinstance(x, bool | int | float):
            # A 0-dim float32 tensor would round 0.1 before it meets float64.
            return self.np.full((), x, dtype=self.np.result_type(like, x), device=like.device)
        return self.asarray(x, like)

    def _pair(self, a: Any, b: Any) -> tuple[Array, Array]:
        like = a if isinstance(a, self.np.Tensor) else b
        return self._tensor(a, like), self._tensor(b, like)

    def sigmoid(self, x: Array) -> Array:
        return self.np.sigmoid(x)

    def log_sigmoid(self, x: Array) -> Array:
        return self.np.nn.functional.logsigmoid(x)

    def maximum(self, a: Array, b: Array) -> Array:
        return self.np.maximum(*self._pair(a, b))

    def minimum(self, a: Array, b: Array) -> Array:
        return self.np.minimum(*self._pair(a, b))

    def relu(self, x: Array) -> Array:
        return self.np.relu(x)

    def clip(self, x: Array, low: Array | None, high: Array | None) -> Array:
        low, high = (bound if bound is None else self._tensor(bound, x) for bound in (low, high))
        return self.np.clamp(x, low, high)

    def where(self, condition: Array, a: Array, b: Array) -> Array:
        tensors = [value for value in (a, b) if isinstance(value, self.np.Tensor)]
        like = tensors[0] if tensors else condition
        if not tensors:  # scalars on both sides: torch's default float type
            like = self.np.zeros((), device=condition.device)
        return self.np.where(self._tensor(condition, like), self._tensor(a, like), self._tensor(b, like))

    def logical_and(self, a: Array, b: Array) -> Array:
        return self.np.logical_and(*self._pair(a, b))

    def logical_or(self, a: Array, b: Array) -> Array:
        return self.np.logical_or(*self._pair(a, b))

    def sum(self, x: Array, axis: int | None, keepdims: bool) -> Array:
        return self.np.sum(x, dim=axis, keepdim=keepdims)

    def mean(self, x: Array, axis: int | None, keepdims: bool) -> Array:
        x = x if x.is_floating_point() else x.to(self.np.get_default_dtype())
        return self.np.mean(x, dim=axis, keepdim=keepdims)

    def max(self, x: Array, axis: int | None, keepdims: bool) -> Array:
        return self.np.amax(x, dim=() if axis is None else axis, keepdim=keepdims)

    def min(self, x: Array, axis: int | None, keepdims: bool) -> Array:
        return self.np.amin(x, dim=() if axis is None else axis, keepdim=keepdims)

    def any(self, x: Array, axis: int | None, keepdims: bool) -> Array:
        return self.np.any(x, dim=axis, keepdim=keepdims)

    def all(self, x: Array, axis: int | None, keepdims: bool) -> Array:
        return self.np.all(x, dim=axis, keepdim=keepdims)

    def logsumexp(self, x: Array, axis: int | None, keepdims: bool) -> Array:
        return self.np.logsumexp(x, dim=tuple(range(x.ndim)) if axis is None else axis, keepdim=keepdims)

    def cumsum(self, x: Array, axis: int) -> Array:
        return self.np.cumsum(x, dim=axis)

    def sort(self, x: Array, axis: int, ascending: bool) -> Array:
        return self.np.sort(x, dim=axis, descending=not ascending, stable=True).values

    def argsort(self, x: Array, axis: int, ascending: bool) -> Array:
        return self.np.argsort(x, dim=axis, descending=not ascending, stable=True)

    def take(self, x: Array, indices: Array, axis: int) -> Array:
        axis = axis % x.ndim
        index = self._index(indices, x)
        picked = self.np.index_select(x, axis, index.reshape(-1))
        return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])

    def take_along_axis(self, x: Array, indices: Array, axis: int) -> Array:
        return self.np.take_along_dim(x, self._index(indices, x), dim=axis)

    def _index(self, indices: Array, x: Array) -> Array:
        return self.np.as_tensor(indices, device=x.device).long()

    def stack(self, arrays: Sequence[Array], axis: int) -> Array:
        return self.np.stack(self._tensors(arrays), dim=axis)

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return self.np.cat(self._tensors(arrays), dim=axis)

    def _tensors(self, arrays: Sequence[Array]) -> list[Array]:
        like = next(array for array in arrays if isinstance(array, self.np.Tensor))
        return [self._tensor(array, like) for array in arrays]

    def segment_sum(self, x: Array, segments: Array, count: int) -> Array:
        return x.new_zeros((count, *x.shape[1:])).index_add(0, self._index(segments, x), x)

    def arange(self, stop: int, like: Array) -> Array:
        return self.np.arange(stop, device=like.device)

    def asarray(self, values: Any, like: Array) -> Array:
        tensor = self.np.as_tensor(values, device=like.device)
        # NumPy's float64 must not widen a model's precision
        return tensor.to(like.dtype) if tensor.is_floating_point() and like.is_floating_point() else tensor

    def astype_like(self, x: Array, like: Array) -> Array:
        return self.np.as_tensor(x).to(like)

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def item(self, x: Array) -> float:
        return float(x.item())

    def to_numpy(self, x: Array) -> Array:
        return x.detach().cpu().numpy()


class MlxLibrary(ArrayLibrary):
    """MLX has NumPy's names nearly everywhere; indices must not be differentiated, and NumPy arrays must be
    converted."""

    def _array(self, x: Any, like: Array) -> Array:
        known = isinstance(x, self.np.array | bool | int | float)
        return x if known else self.asarray(x, like)

    def _pair(self, a: Any, b: Any) -> tuple[Array, Array]:
        like = a if isinstance(a, self.np.array) else b
        return self._array(a, like), self._array(b, like)

    def maximum(self, a: Array, b: Array) -> Array:
        return self.np.maximum(*self._pair(a, b))

    def minimum(self, a: Array, b: Array) -> Array:
        return self.np.minimum(*self._pair(a, b))

    def clip(self, x: Array, low: Array | None, high: Array | None) -> Array:
        low, high = (bound if bound is None else self._array(bound, x) for bound in (low, high))
        return self.np.clip(x, low, high)

    def where(self, condition: Array, a: Array, b: Array) -> Array:
        like = next((value for value in (a, b) if isinstance(value, self.np.array)), condition)
        return self.np.where(self._array(condition, like), self._array(a, like), self._array(b, like))

    def logical_and(self, a: Array, b: Array) -> Array:
        return self.np.logical_and(*self._pair(a, b))

    def logical_or(self, a: Array, b: Array) -> Array:
        return self.np.logical_or(*self._pair(a, b))

    def stack(self, arrays: Sequence[Array], axis: int) -> Array:
        return self.np.stack(self._arrays(arrays), axis=axis)

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return self.np.concatenate(self._arrays(arrays), axis=axis)

    def _arrays(self, arrays: Sequence[Array]) -> list[Array]:
        like = next(array for array in arrays if isinstance(array, self.np.array))
        return [self._array(array, like) for array in arrays]

    def sigmoid(self, x: Array) -> Array:
        return self.np.sigmoid(x)

    def argsort(self, x: Array, axis: int, ascending: bool) -> Array:
        return self.np.stop_gradient(self.np.argsort(x if ascending else -x, axis=axis))

    def take_along_axis(self, x: Array, indices: Array, axis: int) -> Array:
        return self.np.take_along_axis(x, self.np.stop_gradient(self.np.array(indices)), axis=axis)

    def take(self, x: Array, indices: Array, axis: int) -> Array:
        return self.np.take(x, self.np.stop_gradient(self.np.array(indices)), axis=axis)

    def logsumexp(self, x: Array, axis: int | None, keepdims: bool) -> Array:
        return self.np.logsumexp(x, axis=axis, keepdims=keepdims)

    def full_like(self, x: Array, value: float) -> Array:
        return self.np.full(x.shape, value, dtype=x.dtype)

    def segment_sum(self, x: Array, segments: Array, count: int) -> Array:
        result = self.np.zeros((count, *x.shape[1:]), dtype=x.dtype)
        return result.at[self.np.stop_gradient(self.np.array(segments))].add(x)

    def asarray(self, values: Any, like: Array) -> Array:
        array = self.np.array(values)
        floats = self.np.issubdtype(array.dtype, self.np.floating)
        if not floats:
            return array
        return array.astype(like.dtype if self.np.issubdtype(like.dtype, self.np.floating) else self.np.float32)

    def astype_like(self, x: Array, like: Array) -> Array:
        return self.np.array(x).astype(like.dtype)

    def stop_gradient(self, x: Array) -> Array:
        return self.np.stop_gradient(x)

    def item(self, x: Array) -> float:
        return float(x.item())
