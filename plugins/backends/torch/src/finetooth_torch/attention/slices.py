"""Divides the positions of rows among ranks (context parallelism).

The positions of a row are cut into two pieces for each rank. Rank r of N computes piece r and piece 2N - 1 - r, so all
have an equal share of causal attention (Llama 3, arXiv:2407.21783, section 3.3.2). Only attention reads other
positions: a rank gathers the keys and values of all ranks, and their gradients go back to the rank that owns the
positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from finetooth_hooks.compute.attention import Lengths
from finetooth_hooks.protocols import Neighbours
from torch import Tensor


class Slices:
    """One rank's share of the positions of every row.

    Attributes:
        pieces: number of pieces of a row, whose width must be a multiple of it.

    Args:
        line: to the other ranks.
    """

    def __init__(self, line: Neighbours) -> None:
        self._line, self.pieces = line, 2 * line.world

    def columns(self, width: int, device: torch.device) -> Tensor:
        """(width / ranks,) the positions of this rank in a row of `width`."""
        pieces = torch.arange(width, device=device).chunk(self.pieces)
        return torch.cat([pieces[self._line.rank], pieces[-1 - self._line.rank]])

    def attend(
        self, computing: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, **how: Any
    ) -> Tensor:
        """See `finetooth_hooks.compute.attention.Attention`; query, key and value are of this rank's positions.

        Args:
            computing: an entry's function.
            lengths: of the sequences of the whole rows.
        """
        both: Tensor = _Gathered.apply(self._line, torch.cat([key, value], dim=-1))  # type: ignore[no-untyped-call]
        key, value = torch.split(both, [key.shape[-1], value.shape[-1]], dim=-1)
        size, outputs = query.shape[2] // 2, []
        for piece, own in zip(
            (self._line.rank, self.pieces - 1 - self._line.rank), torch.split(query, size, dim=2), strict=True
        ):
            end = (piece + 1) * size
            seen = tuple(_first(row, end) for row in lengths)
            outputs.append(computing(own, key[:, :, :end], value[:, :, :end], lengths=seen, **how))
        return torch.cat(outputs, dim=2)

    def whole(self, values: Tensor, own: Tensor) -> Tensor:
        """`values` where `own` is true, and elsewhere those of the rank that owns them; equal at every rank. Only this
        rank's own values get a gradient.

        Args:
            values: (S, T, ...).
            own: (S, T) true for this rank's values.
        """
        mine = own.view(*own.shape, *[1] * (values.dim() - own.dim()))
        given = torch.where(mine, values.detach(), 0.0)
        return torch.where(mine, values, self._line.sum([given])[0])


class _Gathered(torch.autograd.Function):
    """Gather (R, H, n, E) of this rank's positions into (R, H, T, E) of all, in order."""

    @staticmethod
    def forward(ctx: Any, line: Neighbours, own: Tensor) -> Tensor:
        ctx.line = line
        halves = [half for of_rank in line.all_gather(own) for half in of_rank.chunk(2, dim=2)]
        return torch.cat([*halves[::2], *halves[::-2]], dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        line: Neighbours = ctx.line
        pieces = gradients[0].chunk(2 * line.world, dim=2)
        by_rank = [torch.cat([pieces[rank], pieces[-1 - rank]], dim=2) for rank in range(line.world)]
        return None, line.reduce_scatter(by_rank)


def _first(row: tuple[int, ...], keys: int) -> tuple[int, ...]:
    """Lengths of sequences within the first so many keys of a row."""
    lengths: list[int] = []
    for length in row:
        if keys <= 0:
            break
        lengths.append(min(length, keys))
        keys -= length
    return tuple(lengths)
