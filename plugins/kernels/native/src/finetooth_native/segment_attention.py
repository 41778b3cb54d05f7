"""Attention over segments through the compiled kernel: each block of queries against all it sees, and its scores never
leave the cache. What the kernel cannot take goes the way of `finetooth_kernels.segment_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from finetooth_kernels import segment_attention as plain
from finetooth_kernels.autograd import apply, once_differentiable
from finetooth_kernels.memory import Arena
from finetooth_kernels.segments import Segment, check_segments
from torch import Tensor

from finetooth_native.attention import attention, attention_backward, library_for_attention, paths_of
from finetooth_native.library import Library

__all__ = ["segment_attention"]


def segment_attention(
    qkv_nhd: Tensor,
    segments: Sequence[Segment],
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    arena: Arena | None = None,
) -> Tensor:
    """See `finetooth_kernels.segment_attention.segment_attention`."""
    compiled = library_for_attention(qkv_nhd)
    if compiled is None:
        return plain.segment_attention(qkv_nhd, segments, heads=heads, kv_heads=kv_heads, scale=scale, arena=arena)
    check_segments(segments, qkv_nhd.shape[0])
    return apply(_Compiled, qkv_nhd, compiled, tuple(segments), heads, kv_heads, scale, arena)  # type: ignore[no-any-return]


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_nhd: Tensor, compiled: Library, segments: tuple[Segment, ...], heads: int, kv_heads: int,
        scale: float, arena: Arena | None,
    ) -> Tensor:  # fmt: skip
        rest = paths_of(segments), heads, kv_heads, scale
        ctx.compiled, ctx.rest = compiled, rest
        out_nhd, lse_hn = attention(compiled, qkv_nhd, *rest, arena)
        ctx.save_for_backward(qkv_nhd, out_nhd, lse_hn)
        return out_nhd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nhd: Tensor) -> tuple[Tensor | None, ...]:
        qkv_nhd, out_nhd, lse_hn = ctx.saved_tensors
        grad_nhd = grad_nhd.contiguous()
        gradient = attention_backward(ctx.compiled, qkv_nhd, out_nhd, lse_hn, grad_nhd, *ctx.rest)
        return gradient, None, None, None, None, None, None
