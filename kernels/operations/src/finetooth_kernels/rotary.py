"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864) of the leading heads of a row, forward and backward.

A head of size D holds pairs (i, i + R/2) for i below R/2, R <= D its rotated part, as in Llama; each pair turns by
an angle that depends on position and i. The transposed rotation is the backward pass, so nothing but the angles is
kept. Compiled kernels and the torch operations here do the same.

Qwen3 and Gemma 3 normalise each head before: y = rotate(w x / sqrt(mean(x^2) + eps)). With u the gradient turned back,
n = x r and r the inverse root, dx = r (w u - n mean(w u n)) and dw = sum u n.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finetooth_kernels.autograd import apply, once_differentiable
from finetooth_kernels.compiled import NOTHING, Compiled, Library
from finetooth_kernels.memory import Arena, new_empty
from finetooth_kernels.rms_norm import rms_norm

__all__ = ["norm_rotary", "rotate"]


def rotate(
    x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, arena: Arena | None = None, *,
    compiled: Compiled = NOTHING,
) -> Tensor:  # fmt: skip
    """Turn the first `heads` heads of each row; the others (values) pass.

    Args:
        x_nhd: (N, H, D).
        cos_nr, sin_nr: (N, R/2) float32, the cosine and sine for each position and pair.
        heads: how many of the H heads turn.
        arena: memory of the result.

    Returns:
        The shape and dtype of `x_nhd`.
    """
    return apply(_Rotate, x_nhd, cos_nr, sin_nr, heads, arena, compiled)  # type: ignore[no-any-return]


def norm_rotary(
    x_nhd: Tensor, query_weight_d: Tensor, key_weight_d: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, eps: float,
    arena: Arena | None = None, *, compiled: Compiled = NOTHING,
) -> Tensor:  # fmt: skip
    """Normalise query and key heads, and turn them.

    Args:
        x_nhd: (N, heads + 2 K, D): queries, keys and values of each position.
        query_weight_d, key_weight_d: (D,), in the dtype of `x_nhd` or a wider one, in which the norm is computed then.
        cos_nr, sin_nr: (N, R/2) float32, R <= D.
        heads: of queries.
        eps: added to the mean square.
        arena: for what is kept, and for the result.
        compiled: kernels that take the work.

    Returns:
        The shape and dtype of `x_nhd`.
    """
    kv_heads = (x_nhd.shape[1] - heads) // 2
    queries, keys, values = x_nhd.split([heads, kv_heads, kv_heads], 1)  # type: ignore[no-untyped-call]
    normed = [
        rms_norm(x if x.dtype.itemsize >= weight.dtype.itemsize else x.to(weight.dtype), weight, eps, arena,
                 compiled=compiled).to(x.dtype)
        for x, weight in ((queries, query_weight_d), (keys, key_weight_d))
    ]  # fmt: skip
    return rotate(torch.cat([*normed, values], 1), cos_nr, sin_nr, heads + kv_heads, arena, compiled=compiled)


def _kernels(compiled: Compiled, x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int) -> Library | None:
    """The compiled kernels, where angles and heads are as `rotate` says."""
    if x_nhd.dim() != 3 or not 0 <= heads <= x_nhd.shape[1] or cos_nr.dtype != torch.float32:
        return None
    if cos_nr.shape != sin_nr.shape or cos_nr.dim() != 2 or cos_nr.shape[0] != x_nhd.shape[0]:
        return None
    if 2 * cos_nr.shape[1] > x_nhd.shape[2] or not compiled.readable(cos_nr, sin_nr):
        return None
    library: Library | None = compiled.library_for(x_nhd)
    return library


def _turned(
    compiled: Compiled, x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, *, back: bool,
    arena: Arena | None = None,
) -> Tensor:  # fmt: skip
    out = new_empty(x_nhd, arena=arena)
    kernels = _kernels(compiled, x_nhd, cos_nr, sin_nr, heads)
    if kernels is not None:
        return kernels.rotate(x_nhd, cos_nr, sin_nr, heads, back=back, out=out)
    half, sign = cos_nr.shape[-1], -1 if back else 1
    cos_n1r, sin_n1r = cos_nr.unsqueeze(1), sin_nr.unsqueeze(1)
    out[:, heads:] = x_nhd[:, heads:]
    out[:, :heads, 2 * half :] = x_nhd[:, :heads, 2 * half :]
    first, second = x_nhd[:, :heads, :half], x_nhd[:, :heads, half : 2 * half]
    out[:, :heads, :half] = (first * cos_n1r).addcmul_(second, sin_n1r, value=-sign)
    out[:, :heads, half : 2 * half] = (second * cos_n1r).addcmul_(first, sin_n1r, value=sign)
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, arena: Arena | None, compiled: Compiled
    ) -> Tensor:
        ctx.heads, ctx.compiled = heads, compiled
        ctx.save_for_backward(cos_nr, sin_nr)
        return _turned(compiled, x_nhd, cos_nr, sin_nr, heads, back=False, arena=arena)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nhd: Tensor) -> tuple[Tensor | None, ...]:
        cos_nr, sin_nr = ctx.saved_tensors
        return _turned(ctx.compiled, grad_nhd, cos_nr, sin_nr, ctx.heads, back=True), None, None, None, None, None
