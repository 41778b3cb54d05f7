"""Dropout keyed by example: the masks of `finetooth_steps.draws`, the same in every micro-batch and every repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
from finetooth_steps.draws import Words, halves, mixed, threshold
from numpy.typing import NDArray

NOISE = "embedding noise"


class Draws:
    """The dropout masks of the current micro-batch."""

    def __init__(self) -> None:
        self._keys: Words | None = None
        self._lengths: NDArray[np.float32] | None = None

    @contextmanager
    def keyed(self, keys: Words, lengths: Sequence[int] | NDArray[np.int64] = ()) -> Iterator[None]:
        """A `with` block in which positions of the micro-batch have these keys, (S, T, 2), and its rows these lengths
        (its positions, if examples share rows)."""
        before, self._keys = self._keys, keys
        self._lengths = np.array(lengths, dtype=np.float32).reshape(len(keys), -1, 1)
        try:
            yield
        finally:
            self._keys = before

    def dropped(self, x: mx.array, share: float, site: str) -> mx.array:
        """x (S, T, D) with each number set to 0 with probability `share` and else divided by 1 - share.

        Args:
            site: path of the dropout module.

        Raises:
            RuntimeError: no micro-batch is being computed.
        """
        return mx.where(self._drawn(x, site) >= threshold(share), x / (1 - share), 0.0)

    def noisy(self, embedded: mx.array, alpha: float) -> mx.array:
        """(S, T, D) embeddings plus uniform noise in +-alpha / sqrt(L D), L the length of the row (NEFTune, Jain et
        al., 2023, arXiv:2310.05914, algorithm 1)."""
        assert self._lengths is not None
        bound = alpha / mx.sqrt(mx.array(self._lengths) * embedded.shape[-1])
        noise = self._drawn(embedded, NOISE).astype(mx.float32) * 2.0**-31
        return (embedded.astype(mx.float32) + noise * bound).astype(embedded.dtype)

    def _drawn(self, x: mx.array, site: str) -> mx.array:
        """Uniform random int32 in the shape of `x`."""
        if self._keys is None:
            raise RuntimeError("dropout outside of a micro-batch")
        rows, columns = (mx.array(words) for words in halves(self._keys, site, x.shape[-1]))
        words: mx.array = mixed(rows[..., None] ^ columns)
        return words.view(mx.int32)
