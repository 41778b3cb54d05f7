"""NEFTune: uniform noise on the embeddings of the policy (Jain et al., 2023, arXiv:2310.05914, algorithm 1).

Every number of a sequence's embeddings gets uniform noise in +-alpha / sqrt(L D), with L the length of the sequence and
D the width of the model. It is keyed by example, as dropout is (decision 0007), so a repeated pass, or one with other
micro-batches, has the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetooth_torch.draws import Draws

SITE = "embedding noise"


class EmbeddingNoise:
    """Adds the noise while `over` is entered and the embedding is in training mode; nothing otherwise.

    Args:
        embedding: from ids to vectors; the noise is added to its output.
        alpha: how strong it is; the paper takes 5 to 15.
        draws: the random numbers; knows the layout of positions.
    """

    def __init__(self, embedding: nn.Module, alpha: float, draws: Draws) -> None:
        self._alpha, self._draws = alpha, draws
        self._lengths: Tensor | None = None
        embedding.register_forward_hook(self._add)

    @contextmanager
    def over(
        self, cells_st: Tensor, lengths: Sequence[int], positions: int, wanted: Tensor | None = None
    ) -> Iterator[None]:
        """Sets the length of each position's sequence, which scales the noise, for a `with` block.

        Args:
            cells_st: (S, T) which of the computed positions each cell of the rectangle is.
            lengths: (S,) of the sequences.
            positions: that are computed, padding included.
            wanted: (M,) which of them this rank computes; None: all.
        """
        by_position = torch.ones(positions, device=cells_st.device)
        for row, length in enumerate(lengths):
            by_position[cells_st[row, :length]] = float(length)
        self._lengths = by_position if wanted is None else by_position[wanted]
        try:
            yield
        finally:
            self._lengths = None

    def _add(self, module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor | None:
        lengths = self._lengths
        if lengths is None or not module.training:
            return None
        bound = self._alpha / (lengths * embedded.shape[-1]).sqrt()
        noise = self._draws.uniform(embedded, SITE)
        noise *= bound.view(*embedded.shape[:-1], 1)
        return (embedded.float() + noise).to(embedded.dtype)


@contextmanager
def no_noise() -> Iterator[None]:
    """The context without noise."""
    yield
