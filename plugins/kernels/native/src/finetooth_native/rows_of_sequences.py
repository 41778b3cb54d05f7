"""The attention `native`: rows that hold several sequences, through the compiled kernel, with nothing computed between
them.

The rows of a batch are one stream, and each sequence in them a segment of it that no other sees, so that no mask is
built and a long row costs what its sequences cost. Queries fewer than their keys, those of a cache, go through torch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from finetooth_hooks.compute.attention import Lengths
from finetooth_kernels.segments import Segment
from finetooth_torchshared.attention import visible
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from finetooth_native.segment_attention import segment_attention

__all__ = ["attend"]


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, lengths: Lengths, causal: bool, window: int | None,
    softcap: float | None, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """See `finetooth_hooks.compute.attention.Attention`."""
    del softcap, sinks  # declared as not served
    rows, heads, positions, size = query.shape
    if 0 in (rows, positions):
        return query.new_zeros(*query.shape[:3], value.shape[-1])
    alike = positions == key.shape[2] and size == value.shape[-1] and query.dtype == key.dtype == value.dtype
    if not (alike and causal and window is None):
        return _masked(query, key, value, scale, lengths, causal, window)
    qkv_nhd = torch.cat([query, key, value], 1).transpose(1, 2).flatten(0, 1)
    kv_heads = key.shape[1]
    out_nhd = segment_attention(qkv_nhd, _segments(lengths), heads=heads, kv_heads=kv_heads, scale=scale)
    return out_nhd.view(rows, positions, heads, size).transpose(1, 2)


@lru_cache(maxsize=64)
def _segments(lengths: Lengths) -> tuple[Segment, ...]:
    """All sequences of all rows, one behind the other."""
    segments, at = list[Segment](), 0
    for length in (length for row in lengths for length in row if length):
        segments.append(Segment(at, at + length, at + length))
        at += length
    return tuple(segments)


def _masked(
    query: Tensor, key: Tensor, value: Tensor, scale: float, lengths: Lengths, causal: bool, window: int | None
) -> Tensor:
    """The same by torch, with a mask."""
    positions, keys = query.shape[2], key.shape[2]
    if positions == 1 and causal and window is None:  # one token a row at a time: the mask is made in every layer
        begins = torch.tensor([keys - row[-1] for row in lengths], device=key.device)
        seen = (torch.arange(keys, device=key.device) >= begins[:, None])[:, None, None]
    else:
        seen = visible(lengths, positions, causal=causal, window=window, device=query.device)
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, seen, scale=scale, enable_gqa=grouped)
