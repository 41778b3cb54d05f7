"""Attention of one query a row to a cache of keys and values, through the compiled kernel.

What a row gets depends on nothing but what it sees: not on other rows, not on padding, not on the number of threads.
"""

from __future__ import annotations

from ctypes import c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from finetooth_kernels import native
from finetooth_kernels.native.attention import LANES
from finetooth_kernels.native.library import DTYPE_NUMBERS

__all__ = ["CachedAttention"]


class CachedAttention:
    """Takes the newest column of a cache and looks at everything in it; made by `ready`.

    Letters: R rows, P prompts with n rows each (R = P n), H query heads, K key-value heads, D numbers a head, C columns
    of a row, W columns of a prompt.
    """

    def __init__(self, library: native.Library) -> None:
        self._function = _function(library)

    @staticmethod
    def ready(like: Tensor, size: int) -> CachedAttention | None:
        """None where the compiled kernels are not there, or take no such dtype, device or size of a head."""
        library = None if size % LANES else native.library_for(like)
        return None if library is None else CachedAttention(library)

    def __call__(
        self, qkv_rhd: Tensor, own_hrkcd: Tensor, columns: int, scale: float, *, starts_p: Tensor,
        samples: int = 1, above_hpkwd: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(R, H D). Writes the newest keys and values into column `columns` - 1 of `own_hrkcd`.

        Args:
            qkv_rhd: (R, H + 2 K, D), contiguous: queries, the newest keys, the newest values.
            own_hrkcd: (2, R, K, C, D), keys and values; columns next to each other.
            columns: so many hold a key afterwards.
            scale: of the scores.
            starts_p: (P,) int64, the first column of each prompt; those before it are not looked at.
            samples: n.
            above_hpkwd: (2, P, K, W, D), the prompts' own columns, which their rows share; without it `own_hrkcd`
                begins with the prompt.

        Raises:
            MemoryError: there was none left to work in.
        """
        rows, all_heads, size = qkv_rhd.shape
        kv_heads = own_hrkcd.shape[2]
        heads = all_heads - 2 * kv_heads
        out = qkv_rhd.new_empty((rows, heads * size))
        strides = (c_int64 * 3)(*own_hrkcd.stride()[:3])
        above_strides = (c_int64 * 3)(*(() if above_hpkwd is None else above_hpkwd.stride()[:3]))
        failed = self._function(
            DTYPE_NUMBERS[qkv_rhd.dtype], qkv_rhd.data_ptr(), out.data_ptr(), own_hrkcd.data_ptr(), strides,
            None if above_hpkwd is None else above_hpkwd.data_ptr(), above_strides,
            0 if above_hpkwd is None else above_hpkwd.shape[3], starts_p.data_ptr(), rows, samples, heads, kv_heads,
            size, columns, scale, torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"attention of {rows:,} rows to {columns:,} columns found no memory to work in")
        return out


@lru_cache(maxsize=4)
def _function(library: native.Library) -> Any:
    sizes = [c_int64, c_void_p, *[c_int64] * 6]
    return library.function("ft_cached_attention", [c_int, *[c_void_p] * 6, *sizes, c_float, c_int], c_int)
