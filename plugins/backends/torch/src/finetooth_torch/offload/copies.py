"""Copies of tensors with the same strides and address alignment, so that computation gives the same bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNED = 64
"""Kernels may sum in another order, and so round differently, depending on a tensor's offset from multiples of this (a
cache line, the widest vector)."""


@dataclass(frozen=True)
class Shape:
    """The memory layout of a tensor.

    Attributes:
        span: numbers from its first to its last.
        dense: whether it has all of them.
        offset: of its address from a multiple of `ALIGNED`, in bytes.
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
        """The tensor that `alike` made, after its numbers have arrived."""
        return made if self.dense else made.copy_(raw.view(self.size))


def overlaps(tensor: Tensor) -> bool:
    """Whether some numbers of a tensor share memory, as in an expanded one."""
    span = 1
    for step, n in sorted((step, n) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1):
        if step < span:
            return True
        span = step * n
    return False


def alike(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """An empty tensor of a shape, and (N,) its memory; see `Shape.raw`."""
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
