"""`segment_attention` through the compiled kernel: the tree of segments as arrays, and the two calls."""

from __future__ import annotations

from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from finetooth_kernels.memory import Arena, new_empty
from finetooth_kernels.segments import Segment
from torch import Tensor

from finetooth_native.build import library_for
from finetooth_native.library import DTYPE_NUMBERS, Library

__all__ = ["Paths", "attention", "attention_backward", "library_for_attention", "paths_of"]

LANES = 16
"""The kernel takes heads of a multiple of this size."""

LONGEST_PIECE = 1024
"""Longer segments are cut into pieces that see each other, so that there is work for every thread."""


@dataclass(frozen=True)
class Paths:
    """Pieces of segments, and which of them each one sees before its own rows.

    Attributes:
        starts, stops: (S,) int64, the rows of each piece.
        given: (S,) int64, how many of its first rows are only seen.
        offsets: (S + 1,) int64; piece i sees `pieces[offsets[i]:offsets[i + 1]]`.
        pieces: int64, in the order of their rows.
    """

    starts: Tensor
    stops: Tensor
    given: Tensor
    offsets: Tensor
    pieces: Tensor


@lru_cache(maxsize=64)
def paths_of(segments: tuple[Segment, ...], longest: int = LONGEST_PIECE) -> Paths:
    """The paths of segments in depth-first order, none of them over `longest` rows."""
    starts: list[int] = []
    stops: list[int] = []
    given: list[int] = []
    offsets, pieces = [0], list[int]()
    above: list[tuple[int, list[int]]] = []
    for segment in segments:
        while above and above[-1][0] <= segment.start:
            above.pop()
        path = [piece for _, own in above for piece in own]
        own: list[int] = []
        for at in range(segment.start, segment.stop, longest):
            pieces.extend((*path, *own))
            offsets.append(len(pieces))
            own.append(len(starts))
            starts.append(at)
            stops.append(min(at + longest, segment.stop))
            given.append(min(max(0, segment.start + segment.given - at), stops[-1] - at))
        if segment.below > segment.stop:
            above.append((segment.below, own))
    return Paths(*(torch.tensor(numbers, dtype=torch.int64) for numbers in (starts, stops, given, offsets, pieces)))


def library_for_attention(qkv_nhd: Tensor) -> Library | None:
    """The compiled kernels if they can compute attention of these; None otherwise."""
    return library_for(qkv_nhd) if qkv_nhd.shape[-1] % LANES == 0 else None


@lru_cache(maxsize=4)
def _functions(library: Library) -> tuple[Any, Any]:
    end = [*[c_void_p] * 5, *[c_int64] * 5, c_float, c_int]
    failing = "attention found no memory to work in"
    forward = library.kernel("ft_attention", [c_int, *[c_void_p] * 3, *end], failing)
    return forward, library.kernel("ft_attention_backward", [c_int, *[c_void_p] * 5, *end], failing)


def _end(paths: Paths, qkv_nhd: Tensor, heads: int, kv_heads: int, scale: float) -> tuple[Any, ...]:
    tree = (paths.starts, paths.stops, paths.given, paths.offsets, paths.pieces)
    rows, _, size = qkv_nhd.shape
    count = paths.starts.numel()
    return *(x.data_ptr() for x in tree), count, rows, heads, kv_heads, size, scale, torch.get_num_threads()


def attention(
    library: Library, qkv_nhd: Tensor, paths: Paths, heads: int, kv_heads: int, scale: float,
    arena: Arena | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(N, heads, D) in the dtype of `qkv_nhd`, and (heads, N) float32, the scores' log-sum-exp.

    Args:
        arena: where both lie.

    Raises:
        MemoryError: there was none left to work in.
    """
    rows, _, size = qkv_nhd.shape
    out_nhd = new_empty(qkv_nhd, (rows, heads, size), arena=arena)
    lse_hn = new_empty(qkv_nhd, (heads, rows), torch.float32, arena)
    _functions(library)[0](
        DTYPE_NUMBERS[qkv_nhd.dtype], qkv_nhd.data_ptr(), out_nhd.data_ptr(), lse_hn.data_ptr(),
        *_end(paths, qkv_nhd, heads, kv_heads, scale),
    )  # fmt: skip
    return out_nhd, lse_hn


def attention_backward(
    library: Library, qkv_nhd: Tensor, out_nhd: Tensor, lse_hn: Tensor, grad_nhd: Tensor, paths: Paths,
    heads: int, kv_heads: int, scale: float,
) -> Tensor:  # fmt: skip
    """The gradient of `qkv_nhd`; the same for any number of threads.

    Raises:
        MemoryError: there was none left to work in.
    """
    d_qkv_nhd = new_empty(qkv_nhd)
    _functions(library)[1](
        DTYPE_NUMBERS[qkv_nhd.dtype], qkv_nhd.data_ptr(), out_nhd.data_ptr(), lse_hn.data_ptr(), grad_nhd.data_ptr(),
        d_qkv_nhd.data_ptr(), *_end(paths, qkv_nhd, heads, kv_heads, scale),
    )  # fmt: skip
    return d_qkv_nhd
