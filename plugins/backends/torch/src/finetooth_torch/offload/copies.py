"""Copies of tensors that computation cannot tell from them: with their strides, and as their addresses are aligned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNED = 64
"""Kernels may go about a tensor in another order, and so round otherwise, by where it begins between multiples of this
(a cache line, the widest vector)."""


@dataclass(frozen=True)
class Shape:
    """How a tensor lies in memory.

    Attributes:
        span: numbers from its first to its last.
        dense: it has all of them.
        offset: bytes by which its address is above a multiple of `ALIGNED`.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    span: int
    dense: bool
    offset: int

    @staticmethod
    def of(tensor: Tensor) -> Shape:
        size, stride = tuple(tensor.shape), tuple(tensor.stride())
        span = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        offset = tensor.data_ptr() % ALIGNED
        return Shape(size, stride, tensor.dtype, span, span == tensor.numel(), offset)

    def raw(self, tensor: Tensor) -> Tensor:
        """The numbers of a tensor of this shape, (N,): in the order of memory where it is dense, else in its own."""
        if self.dense:
            return tensor.detach().as_strided((self.span,), (1,))
        return tensor.detach().contiguous().flatten()

    def filled(self, made: Tensor, raw: Tensor) -> Tensor:
        """A tensor that `alike` made, now that the numbers are there."""
        return made if self.dense else made.copy_(raw.view(self.size))


def overlaps(tensor: Tensor) -> bool:
    """Whether some numbers of a tensor share memory, as those of an expanded one."""
    span = 1
    for step, n in sorted((step, n) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1):
        if step < span:
            return True
        span = step * n
    return False


def alike(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """An empty tensor of a shape, and (N,) where its numbers shall be put; see `Shape.raw`."""
    each = shape.dtype.itemsize
    room = torch.empty(shape.span + ALIGNED // each, dtype=shape.dtype, device=device)
    first = (shape.offset - room.data_ptr()) % ALIGNED // each
    made = room.as_strided(shape.size, shape.stride, first)
    if shape.dense:
        return made, room[first : first + shape.span]
    numbers = 1
    for n in shape.size:
        numbers *= n
    return made, torch.empty(numbers, dtype=shape.dtype, device=device)
