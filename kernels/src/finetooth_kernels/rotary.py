"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864) of the leading heads of a row, forward and backward.

A head of size D holds pairs (i, i + R/2) for i below R/2, R <= D its rotated part, as in Llama; each pair turns by
an angle that depends on position and i. The transposed rotation is the backward pass, so nothing but the angles is
kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["rotate"]


def rotate(x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int) -> Tensor:
    """Turn the first `heads` heads of each row; the others (values) pass.

    Args:
        x_nhd: (N, H, D).
        cos_nr, sin_nr: (N, R/2) float32, the cosine and sine for each position and pair.
        heads: how many of the H heads turn.

    Returns:
        The shape and dtype of `x_nhd`.
    """
    return _Rotate.apply(x_nhd, cos_nr, sin_nr, heads)  # type: ignore[no-any-return,no-untyped-call]


def _turned(x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int) -> Tensor:
    half = cos_nr.shape[-1]
    cos_n1r, sin_n1r = cos_nr.unsqueeze(1), sin_nr.unsqueeze(1)
    out = torch.empty_like(x_nhd, memory_format=torch.contiguous_format)
    out[:, heads:] = x_nhd[:, heads:]
    out[:, :heads, 2 * half :] = x_nhd[:, :heads, 2 * half :]
    first, second = x_nhd[:, :heads, :half], x_nhd[:, :heads, half : 2 * half]
    out[:, :heads, :half] = (first * cos_n1r).addcmul_(second, sin_n1r, value=-1)
    out[:, :heads, half : 2 * half] = (second * cos_n1r).addcmul_(first, sin_n1r)
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int) -> Tensor:
        ctx.heads = heads
        ctx.save_for_backward(cos_nr, sin_nr)
        return _turned(x_nhd, cos_nr, sin_nr, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nhd: Tensor) -> tuple[Tensor | None, ...]:
        cos_nr, sin_nr = ctx.saved_tensors
        return _turned(grad_nhd, cos_nr, -sin_nr, ctx.heads), None, None, None
