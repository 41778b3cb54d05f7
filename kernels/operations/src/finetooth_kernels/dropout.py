"""Dropout whose numbers are a function of keys: a word of the row and a word of the column decide what stays.

    y = scale x, where mixed(row ^ column) is at least the threshold, as signed numbers of 32 bits; else 0

`finetooth_steps.draws` makes the words.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["FIRST", "SECOND", "keyed_dropout", "mixed"]

FIRST, SECOND = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32
"""Multipliers of the finalizer of MurmurHash3 (Appleby, 2011), as signed numbers."""


def keyed_dropout(x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float) -> Tensor:
    """Set numbers to 0 and scale the others.

    Args:
        x_nd: (N, D) of any floating dtype.
        rows_n, columns_d: (N,) and (D,) int32 words.
        threshold: the least word, as a signed number, that stays.
        scale: factor on the remaining numbers.

    Returns:
        (N, D) in the dtype of `x_nd`.
    """
    mask = mixed(rows_n[:, None] ^ columns_d) >= threshold
    return x_nd * mask.to(x_nd.dtype).mul_(scale)


def mixed(words: Tensor) -> Tensor:
    """`finetooth_steps.draws.mixed` of int32, in place: products wrap around, shifts are of unsigned words."""
    words ^= (words >> 16) & 0xFFFF
    words *= FIRST
    words ^= (words >> 13) & 0x7FFFF
    words *= SECOND
    words ^= (words >> 16) & 0xFFFF
    return words
