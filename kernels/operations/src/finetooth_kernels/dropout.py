"""Dropout whose numbers are a function of keys: a word of the row and a word of the column decide what stays.

    y = scale x, where mixed(row ^ column) is at least the threshold, as signed numbers of 32 bits; else 0

`finetooth_steps.draws` makes the words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from finetooth_kernels.autograd import apply, once_differentiable
from finetooth_kernels.compiled import NOTHING, Compiled, Library

__all__ = ["FIRST", "SECOND", "Dropped", "DropsByKeys", "keyed_dropout", "mixed"]

FIRST, SECOND = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32
"""Multipliers of the finalizer of MurmurHash3 (Appleby, 2011), as signed numbers."""


def keyed_dropout(
    x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float, *, compiled: Compiled = NOTHING
) -> Tensor:
    """Set numbers to 0 and scale the others. Compiled kernels keep the words for backward, and nothing as large as x.

    Args:
        x_nd: (N, D) of any floating dtype.
        rows_n, columns_d: (N,) and (D,) int32 words.
        threshold: the least word, as a signed number, that stays.
        scale: factor on the remaining numbers.

    Returns:
        (N, D) in the dtype of `x_nd`.
    """
    library = compiled.library_for(x_nd, strided=True)
    if library is not None:
        return apply(_KeyedDropout, x_nd, rows_n, columns_d, threshold, scale, library)  # type: ignore[no-any-return]
    mask = mixed(rows_n[:, None] ^ columns_d) >= threshold
    return x_nd * mask.to(x_nd.dtype).mul_(scale)


class _KeyedDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float, library: Library
    ) -> Tensor:
        ctx.rest = threshold, scale
        ctx.library = library
        ctx.save_for_backward(rows_n, columns_d)
        return library.dropped(x_nd.contiguous(), rows_n.contiguous(), columns_d.contiguous(), threshold, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor | None, ...]:
        d_x = ctx.library.dropped(grad_nd.contiguous(), *ctx.saved_tensors, *ctx.rest)
        return d_x, None, None, None, None, None


class Dropped(NamedTuple):
    """What decides which numbers of some rows stay: see `keyed_dropout`, which `drop` is."""

    rows_n: Tensor
    columns_d: Tensor
    threshold: int
    scale: float
    drop: Callable[..., Tensor] = keyed_dropout


class DropsByKeys(Protocol):
    """A module of dropout that knows its words before it is called."""

    def keyed(self, x_nd: Tensor) -> Dropped | None:
        """What it drops of these rows now; None if they have no keys, so that only a call of the module says it."""
        ...


def mixed(words: Tensor) -> Tensor:
    """`finetooth_steps.draws.mixed` of int32, in place: products wrap around, shifts are of unsigned words."""
    words ^= (words >> 16) & 0xFFFF
    words *= FIRST
    words ^= (words >> 13) & 0x7FFFF
    words *= SECOND
    words ^= (words >> 16) & 0xFFFF
    return words
