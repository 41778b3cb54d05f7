"""Dropout whose numbers are a function of keys: a word of the row and a word of the column decide what stays.

    y = scale x, where mixed(row ^ column) is at least the threshold, as signed numbers of 32 bits; else 0

`finetooth_steps.draws` makes the words. Kept for backward: the words of rows and columns, nothing as large as x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finetooth_kernels.autograd import apply, once_differentiable

__all__ = ["FIRST", "SECOND", "dropout_by", "keyed_dropout", "mixed"]

FIRST, SECOND = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32
"""Multipliers of the finalizer of MurmurHash3 (Appleby, 2011), as signed numbers."""

Drop = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
"""`keyed_dropout` without a graph."""


def keyed_dropout(x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float) -> Tensor:
    """Set numbers to 0 and scale the others.

    Args:
        x_nd: (N, D) of any floating dtype.
        rows_n, columns_d: (N,) and (D,) int32 words.
        threshold: the least word, as a signed number, that stays.
        scale: on what stays.

    Returns:
        (N, D) in the dtype of `x_nd`.
    """
    return dropout_by(_dropped, x_nd, rows_n, columns_d, threshold, scale)


def dropout_by(
    drop: Drop, x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float
) -> Tensor:  # fmt: skip
    """`keyed_dropout` with a graph, computed by `drop` in both directions: the gradient is dropped alike."""
    return apply(_Dropout, x_nd, rows_n, columns_d, threshold, scale, drop)  # type: ignore[no-any-return]


def mixed(words: Tensor) -> Tensor:
    """`finetooth_steps.draws.mixed` of int32, in place: products wrap around, shifts are of unsigned words."""
    words ^= (words >> 16) & 0xFFFF
    words *= FIRST
    words ^= (words >> 13) & 0x7FFFF
    words *= SECOND
    words ^= (words >> 16) & 0xFFFF
    return words


def _dropped(x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float) -> Tensor:
    kept = mixed(rows_n[:, None] ^ columns_d) >= threshold
    return x_nd * kept.to(x_nd.dtype).mul_(scale)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float, drop: Drop
    ) -> Tensor:
        ctx.rest = threshold, scale, drop
        ctx.save_for_backward(rows_n, columns_d)
        return drop(x_nd, rows_n, columns_d, threshold, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor | None, ...]:
        rows_n, columns_d = ctx.saved_tensors
        threshold, scale, drop = ctx.rest
        return drop(grad_nd, rows_n, columns_d, threshold, scale), None, None, None, None, None
