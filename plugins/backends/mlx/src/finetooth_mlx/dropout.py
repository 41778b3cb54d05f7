"""Dropout keyed by datum: the masks of `finetooth_steps.draws`, the same bits in every micro-batch and every repeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
from finetooth_steps.draws import Words, halves, mixed, threshold


class Draws:
    """What is dropped while a micro-batch is computed."""

    def __init__(self) -> None:
        self._keys: Words | None = None

    @contextmanager
    def keyed(self, keys: Words) -> Iterator[None]:
        """While entered, positions of the micro-batch have these keys, (S, T, 2)."""
        before, self._keys = self._keys, keys
        try:
            yield
        finally:
            self._keys = before

    def dropped(self, x: mx.array, share: float, site: str) -> mx.array:
        """x (S, T, D), of which each number is 0 with probability `share` and else divided by 1 - share.

        Args:
            site: path of the module that drops.

        Raises:
            RuntimeError: no micro-batch is being computed.
        """
        if self._keys is None:
            raise RuntimeError("dropout outside of a micro-batch")
        rows, columns = (mx.array(words) for words in halves(self._keys, site, x.shape[-1]))
        mask = mixed(rows[..., None] ^ columns).view(mx.int32) >= threshold(share)
        return mx.where(mask, x / (1 - share), 0.0)
