"""Attention of one query a row to a cache of keys and values, through the compiled kernel.

What a row gets depends on nothing but what it sees: not on other rows, not on padding, not on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from finetooth_native.attention import LANES
from finetooth_native.build import library_for
from finetooth_native.library import DTYPE_NUMBERS, Library

__all__ = ["CachedAttention"]


class CachedAttention:
    """Takes the newest column of a cache and looks at everything in it; made by `ready`.

    Letters: R rows, P prompts with n rows each (R = P n), H query heads, K key-value heads, D numbers a head, C columns
    of a row, W columns of a prompt.
    """

    def __init__(self, library: Library) -> None:
        self._kernel = _kernel(library)

    @staticmethod
    def ready(like: Tensor, size: int) -> CachedAttention | None:
        """None where the compiled kernels are not there, or take no such dtype, device or size of a head."""
        library = None if size % LANES else library_for(like)
        return None if library is None else CachedAttention(library)

    def __call__(
        self, qkv_rhd: Tensor, own_hrkcd: Tensor, columns_1: Tensor, scale: float, *, starts_p: Tensor,
        samples: int = 1, above_hpkwd: Tensor | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(R, H D). Writes the newest keys and values into the last column of `own_hrkcd` that is in use.

        Args:
            qkv_rhd: (R, H + 2 K, D), contiguous: queries, the newest keys, the newest values.
            own_hrkcd: (2, R, K, C, D), keys and values; columns next to each other.
            columns_1: (1,) int64: how many columns hold a key afterwards. It is read when the kernel runs.
            scale: of the scores.
            starts_p: (P,) int64, the first column of each prompt; those before it are not looked at.
            samples: n.
            above_hpkwd: (2, P, K, W, D), the prompts' own columns, which their rows share; without it `own_hrkcd`
                begins with the prompt.
            out: where to write the result, contiguous.

        Raises:
            MemoryError: there was none left to work in.
        """
        rows, all_heads, size = qkv_rhd.shape
        kv_heads = own_hrkcd.shape[2]
        heads = all_heads - 2 * kv_heads
        out = qkv_rhd.new_empty((rows, heads * size)) if out is None else out
        strides = (c_int64 * 3)(*own_hrkcd.stride()[:3])
        above_strides = (c_int64 * 3)(*(() if above_hpkwd is None else above_hpkwd.stride()[:3]))
        self._kernel(
            DTYPE_NUMBERS[qkv_rhd.dtype], qkv_rhd.data_ptr(), out.data_ptr(), own_hrkcd.data_ptr(), strides,
            None if above_hpkwd is None else above_hpkwd.data_ptr(), above_strides,
            0 if above_hpkwd is None else above_hpkwd.shape[3], starts_p.data_ptr(), columns_1.data_ptr(), rows,
            samples, heads, kv_heads, size, scale, torch.get_num_threads(),
        )  # fmt: skip
        return out


@lru_cache(maxsize=4)
def _kernel(library: Library) -> Callable[..., None]:
    places = [*[c_void_p] * 6, c_int64, c_void_p, c_void_p]
    failing = "attention to a cache found no memory to work in"
    return library.kernel("ft_cached_attention", [c_int, *places, *[c_int64] * 5, c_float, c_int], failing)
