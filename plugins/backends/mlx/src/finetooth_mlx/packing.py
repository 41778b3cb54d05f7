"""Keeps examples that share a row, and segments of an example, apart.

mlx-lm's models take the attention mask from a layer's cache. `Segments` replaces the cache: it stores nothing and gives
a mask that is true within a segment. Positions count through a row, since rotary embeddings depend on differences only.
A trial decides whether a model keeps segments apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from finetooth_steps.row_filling import TRIAL, leak, trial_tokens
from mlx_lm.models.base import create_causal_mask


class Segments:
    """A cache, for one layer or all, that stores nothing.

    Args:
        lengths: of the segments of each row, padding included; all rows are equally wide.
    """

    offset = 0

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        numbers = mx.array(np.stack([np.repeat(np.arange(len(row), dtype=np.int32), row) for row in lengths]))
        self._same = (numbers[:, :, None] == numbers[:, None, :])[:, None]
        self._masks: dict[int | None, mx.array] = {}

    def make_mask(self, width: int, return_array: bool = True, window_size: int | None = None) -> mx.array:
        """(R, 1, W, W), true where a position is read; made once for all layers with the same window."""
        if window_size not in self._masks:
            self._masks[window_size] = self._same & create_causal_mask(width, window_size=window_size)
        return self._masks[window_size]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The given keys and values: no cached ones precede them."""
        return keys, values


def obstacle(body: Any, layers: int, vocabulary: int) -> str:
    """Why the segments of a row cannot be kept apart; empty if they can.

    Args:
        body: in evaluation mode; a few tokens are tried.
    """
    grid = ([0, 1], [2, 3])

    def together(parts: Sequence[Any]) -> list[Any]:
        tokens = [np.concatenate([parts[i] for i in row]) for row in grid]
        cache = [Segments([[TRIAL[i] for i in row] for row in grid])] * layers
        states = numbers(body(mx.array(np.stack(tokens)), cache=cache))
        return [
            part
            for of, row in zip(states, grid, strict=True)
            for part in np.split(of, np.cumsum([TRIAL[i] for i in row])[:-1])
        ]

    parts, others = trial_tokens(vocabulary)
    try:
        alone = [numbers(body(mx.array(part[None]), cache=None))[0] for part in parts]
        computed = body.embed_tokens(mx.array([[0]])).dtype.size
        return leak(alone, together(parts), together(others), computed)
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # an error of mlx-lm's code
        return f"mlx-lm's class of this model takes no mask that keeps them apart ({type(error).__name__})"


def numbers(states: mx.array) -> Any:
    """In float64, of NumPy."""
    return np.array(states.astype(mx.float32)).astype(np.float64)
