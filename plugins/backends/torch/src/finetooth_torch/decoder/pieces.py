"""Feed-forward blocks computed in pieces of a row, each computed again in the backward pass.

A feed-forward block is several times as wide as the residual stream, and computes each position independently: in
pieces, its memory does not grow with the row (Arctic Long Sequence Training, 2025, arXiv:2506.13996, section 3.1,
TiledMLP). The numbers are the same; a step repeats the blocks' forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, wraps
from typing import Any

import torch
from finetooth_hooks import EngineError
from finetooth_hooks.protocols import ModelFacts
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from finetooth_torch.draws import Draws
from finetooth_torch.planning.offload import PIECES, feed_forward_path


class Pieces:
    """Applies a function of independent rows piece by piece.

    Args:
        tokens: rows per piece.
        draws: gets the rows of a piece, so that dropout does not depend on pieces.
    """

    def __init__(self, tokens: int, draws: Draws) -> None:
        self._tokens, self._draws = tokens, draws

    def __call__(self, compute: Callable[..., Tensor], *of_rows: Tensor) -> Tensor:
        """`compute(*of_rows)`, where tensors (N, ...) give one (N, ...)."""
        count = of_rows[0].shape[0]
        if count <= self._tokens:
            return compute(*of_rows)

        def of_piece(start: int, *piece: Tensor) -> Tensor:
            with self._draws.piece(start, count):
                return compute(*piece)

        made, keeps = [], torch.is_grad_enabled()
        size = self._tokens
        split = [[rows[at : at + size] for at in range(0, len(rows), size)] for rows in of_rows]
        for number, piece in enumerate(zip(*split, strict=True)):
            start = number * size
            again = checkpoint(of_piece, start, *piece, use_reentrant=False) if keeps else of_piece(start, *piece)
            made.append(again)
        return torch.cat(made)

    def attach(self, layers: Iterable[nn.Module], facts: ModelFacts) -> None:
        """Make the feed-forward modules of a model's own layers compute in pieces."""
        path = feed_forward_path(facts)
        for layer in layers:
            module = layer.get_submodule(path)
            module.__class__ = _in_pieces(type(module))  # type: ignore[arg-type]
            vars(module)["pieces"] = self


@cache
def _in_pieces(kind: type[nn.Module]) -> type[nn.Module]:
    """A class like `kind` whose forward goes through its module's `pieces`."""

    @wraps(kind.forward)
    def forward(self: Any, hidden: Tensor, *args: Any, **more: Any) -> Tensor:
        def of_rows(rows_nd: Tensor) -> Tensor:
            made = kind.forward(self, rows_nd.unsqueeze(0), *args, **more)
            if not isinstance(made, Tensor):
                raise EngineError(f"{PIECES}: {kind.__name__} gives more than one tensor", action=f"leave {PIECES} out")
            return made.squeeze(0)

        made: Tensor = self.pieces(of_rows, hidden.flatten(0, -2))
        return made.view(*hidden.shape[:-1], made.shape[-1])

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
