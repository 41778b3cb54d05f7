"""Calls of compiled kernels, noted and made again without the Python that led to them.

Where kernels are short, as in writing tokens one after the other, Python takes as long between them as they do. What
is computed on the same memory again and again is captured once, and from then on only its kernels are called, as with
CUDA graphs on a GPU. Only what compiled kernels compute can be captured: capturing watches torch's operations, and
where there is another than a view, or a tensor other than in memory that is kept for the replay, there is none. It
cannot see who reads or writes a tensor's memory without torch (`numpy()`, `tolist()`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from finetooth_kernels.memory import Blocks, new_empty, private

__all__ = ["NOTED", "WORTH_CAPTURING", "Call", "Captured", "Repeated", "capture"]

WORTH_CAPTURING = 4
"""Number of normal computations before a capture, which cost about as much as the capture."""

_ATEN = torch.ops.aten
_MAKING = (_ATEN.empty.memory_format, _ATEN.new_empty.default)
_VIEWS = (
    *(_ATEN.view.default, _ATEN.as_strided.default, _ATEN.alias.default, _ATEN.detach.default, _ATEN.expand.default),
    *(_ATEN.select.int, _ATEN.slice.Tensor, _ATEN.split.Tensor, _ATEN.split_with_sizes.default, _ATEN.unbind.int),
    *(_ATEN.t.default, _ATEN.transpose.int, _ATEN.permute.default, _ATEN.unsqueeze.default, _ATEN.squeeze.dim),
)
"""Operations that always make a view; others may also copy."""


Call = tuple[Callable[..., None], tuple[Any, ...]]
"""A kernel with its arguments."""


class _CalledKernels(threading.local):
    """The kernels that a thread calls, recorded during a capture."""

    calls: list[Call] | None = None


NOTED = _CalledKernels()
"""The record of arguments of a provider's compiled kernels: each appends to `calls` while it is a list."""


class Captured:
    """Made by `capture`; a call computes again, from the present content of the captured memory."""

    def __init__(self, calls: Sequence[Call], blocks: Blocks) -> None:
        self._calls, self._blocks = tuple(calls), blocks  # the kernels write there, so it stays reserved

    def __call__(self) -> None:
        for kernel, arguments in self._calls:
            kernel(*arguments)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees torch's operations: those that make tensors make them in the thread's blocks."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.only_kernels = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKING:
            sketch = func(*args, **{**kwargs, "device": "meta"})  # shape and dtype of the result
            like = args[0] if func is _ATEN.new_empty.default else torch.empty(0)
            if kwargs.get("device", like.device).type == "cpu" and sketch.is_contiguous():
                return new_empty(like, sketch.shape, sketch.dtype)
        elif func in _VIEWS or func.namespace == "profiler":
            return func(*args, **kwargs)
        self.only_kernels = False
        return func(*args, **kwargs)


def capture(compute: Callable[[], Tensor]) -> tuple[Tensor, Captured | None]:
    """Compute a result, and capture its replay; the replay is None if torch's own operations are part of it.

    Args:
        compute: reads tensors that live as long as what is returned; to compute from other numbers, write them there.

    Returns:
        The result, which computing again writes to; and that.
    """
    blocks, watch, before = Blocks(), _Watch(), NOTED.calls
    calls: list[Call] = []
    NOTED.calls = calls
    try:
        with private(blocks), watch:
            result = compute()
    finally:
        NOTED.calls = before
    return result, Captured(calls, blocks) if watch.only_kernels and not blocks.refused else None


class Repeated:
    """A function of tensors that is called again and again: captured where that is possible.

    Where it is not, it is tried after twice as many calls the next time.
    """

    def __init__(self) -> None:
        self._worth, self._shapes = WORTH_CAPTURING, tuple[torch.Size, ...]()
        self.forget()

    def forget(self) -> None:
        """Drop the captures, since the computation has changed."""
        self._times = 0
        self._captured: tuple[tuple[Tensor, ...], Tensor, Captured] | None = None

    def __call__(self, compute: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """The function's result; the next call may overwrite it.

        Args:
            compute: the function, the same in every call (held here it would hold its owner). Whatever else it reads
                stays where it is; `forget` says when that is over.
            given: its arguments, on the CPU.
        """
        shapes = tuple(x.shape for x in given)
        if shapes != self._shapes:
            self.forget()
            self._shapes = shapes
        if self._captured is None:
            self._times += 1
            if self._times <= self._worth:
                return compute(*given)
            inputs = tuple(x.clone() for x in given)
            result, captured = capture(lambda: compute(*inputs))
            if captured is None:
                self._worth, self._times = 2 * self._worth, 0
            else:
                self._captured = inputs, result, captured
            return result
        inputs, result, captured = self._captured
        for to, x in zip(inputs, given, strict=True):
            to.copy_(x)
        captured()
        return result
