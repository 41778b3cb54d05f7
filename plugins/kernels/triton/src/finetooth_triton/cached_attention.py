"""Attention of one query a row to a cache of keys and values, by a Triton kernel.

A program takes the queries of one key-value head of a row and reads the columns that the row sees, and no others: no
padding, and nothing that a mask would hide. How many columns are in use is read on the device when the kernel runs, so
the same launch serves every token. The softmax runs along with the columns (Milakov and Gimelshein, 2018,
arXiv:1805.02867).
"""

from __future__ import annotations

import torch
from torch import Tensor

from finetooth_triton import gpu, layers

__all__ = ["CachedAttention"]

TILE = 2**13
"""Bytes of keys that a program looks at at once, at most."""
COLUMNS = 64
"""Columns of them, at most."""
LEAST = 16
"""Rows and columns of a product, at least."""
WIDEST = 256
"""Numbers of a head, at most."""


class CachedAttention:
    """Takes the newest column of a cache and looks at everything in it; made by `ready`.

    Letters: R rows, P prompts with n rows each (R = P n), H query heads, K key-value heads, D numbers a head, C columns
    of a row, W columns of a prompt.
    """

    @staticmethod
    def ready(like: Tensor, size: int) -> CachedAttention | None:
        """None where the kernel does not run, or takes no such dtype or size of a head."""
        takes = like.dtype in gpu.SUPPORTED_DTYPES and 0 < size <= WIDEST
        return CachedAttention() if takes and layers.runs_on(like.device) else None

    def __call__(
        self, qkv_rhd: Tensor, own_hrkcd: Tensor, columns_1: Tensor, scale: float, *, starts_p: Tensor,
        samples: int = 1, above_hpkwd: Tensor | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(R, H D). Writes the newest keys and values into the last column of `own_hrkcd` that is in use.

        Args:
            qkv_rhd: (R, H + 2 K, D), contiguous: queries, the newest keys, the newest values.
            own_hrkcd: (2, R, K, C, D), keys and values; columns next to each other.
            columns_1: (1,) on the device: how many columns hold a key afterwards.
            scale: of the scores.
            starts_p: (P,), the first column of each prompt; those before it are not looked at.
            samples: n.
            above_hpkwd: (2, P, K, W, D), the prompts' own columns, which their rows share; without it `own_hrkcd`
                begins with the prompt.
            out: where to write the result, contiguous.
        """
        from finetooth_triton.cache_kernels import cached_attention_kernel

        rows, all_heads, size = qkv_rhd.shape
        kv_heads = own_hrkcd.shape[2]
        heads = all_heads - 2 * kv_heads
        group, numbers = heads // kv_heads, max(LEAST, layers.power(size))
        out = qkv_rhd.new_empty((rows, heads * size)) if out is None else out
        if not rows:
            return out
        above = own_hrkcd if above_hpkwd is None else above_hpkwd
        warps, stages = (8, 1) if gpu.in_halves(qkv_rhd.device) else (4, 2)
        with gpu.on(qkv_rhd.device):
            cached_attention_kernel[(rows, kv_heads)](
                qkv_rhd, own_hrkcd, above, starts_p, columns_1, out, scale, kv_heads, samples, above.shape[3],
                *own_hrkcd.stride()[:3], *above.stride()[:3], SHARED=above_hpkwd is not None, GROUP=group, SIZE=size,
                WHOLE=numbers == size, PRECISION=gpu.product_precision(qkv_rhd.dtype),
                WIDEN=gpu.interpreted() and qkv_rhd.dtype == torch.bfloat16, QUERIES=max(LEAST, layers.power(group)),
                COLUMNS=max(LEAST, min(COLUMNS, TILE // (numbers * qkv_rhd.element_size()))), NUMBERS=numbers,
                num_warps=warps, num_stages=stages,
            )  # fmt: skip
        return out
