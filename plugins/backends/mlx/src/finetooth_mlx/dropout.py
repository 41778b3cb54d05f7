"""Dropout keyed by datum: a mask depends on seed, step, datum, module, position and column alone.

Bits come from a hash of a counter and not from a stream, so that a row's mask is the same in every micro-batch, and the
same again when a pass is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

GOLDEN, OTHER = 0x9E3779B9, 0x85EBCA6B
"""Odd numbers that spread the numbers of modules over 32 bits."""


class Draws:
    """What is dropped while a micro-batch is computed."""

    def __init__(self) -> None:
        self._keys: NDArray[np.uint32] | None = None

    @contextmanager
    def keyed(self, keys: Sequence[tuple[int, int]]) -> Iterator[None]:
        """While entered, rows of the micro-batch have these keys, (S,) of `finetooth_steps.draws.words_of`."""
        before, self._keys = self._keys, np.array(keys, dtype=np.uint32)
        try:
            yield
        finally:
            self._keys = before

    def dropped(self, x: mx.array, share: float, place: int) -> mx.array:
        """x (S, T, D), of which each number is 0 with probability `share` and else divided by 1 - share.

        Raises:
            RuntimeError: no micro-batch is being computed.
        """
        if self._keys is None:
            raise RuntimeError("dropout outside of a micro-batch")
        first, second = (mx.array(self._keys[:, i])[:, None, None] for i in (0, 1))
        counter = mx.arange(x.shape[1] * x.shape[2], dtype=mx.uint32).reshape(1, *x.shape[1:])
        bits = mixed(counter ^ mixed(first + mx.array(place * GOLDEN % 2**32, mx.uint32)))
        bits = mixed(bits + (second ^ mx.array(place * OTHER % 2**32, mx.uint32)))
        kept = bits >= mx.array(int(share * 2**32), mx.uint32)
        return mx.where(kept, x / (1 - share), 0.0)


def mixed(x: mx.array) -> mx.array:
    """A permutation of 32-bit words in which every bit depends on every other (C. Wellons, "lowbias32", 2018)."""
    x = x ^ (x >> 16)
    x = x * mx.array(0x7FEB352D, mx.uint32)
    x = x ^ (x >> 15)
    x = x * mx.array(0x846CA68B, mx.uint32)
    return x ^ (x >> 16)
