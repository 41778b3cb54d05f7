"""Dion (Ahn et al., 2025, Dion: Distributed Orthonormalized Updates, arXiv:2504.05295, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from finetooth_torchshared.by_parameter import ByParameter, Settings, decay
from torch import Tensor

from finetooth_muon.optimizers import rank_of


class Dion(ByParameter):
    """With gradient G (m, n), momentum M (m, n), directions V (n, r), rate lr, momentum factor mu, weight decay wd:

        B <- M + G;  U <- orthonormal columns of B V;  R <- B^T U
        M <- B - (1 - mu) U R^T;  V <- R with columns of norm 1
        W <- (1 - lr * wd) W - lr * sqrt(m / n) U V^T

    Args:
        params: matrices, or groups of them with `lr`, `momentum` and `weight_decay`.
        seed: of the first V, which depends on each matrix's index.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float, rank_ratio: float, seed: int, weight_decay: float = 0.0
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rank_ratio": rank_ratio}
        super().__init__(params, settings)
        self._seed = seed

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        outputs, inputs = weight.shape
        if not state:
            state["momentum"] = torch.zeros_like(weight)
            draw = torch.Generator().manual_seed(self._seed + place)
            rank = rank_of(outputs, inputs, group["rank_ratio"])
            first = torch.randn(inputs, rank, generator=draw, dtype=torch.float64)
            state["directions"] = _unit(first).to(weight)
        momentum, directions = state["momentum"], state["directions"]
        momentum.add_(gradient)
        left = torch.linalg.qr(momentum @ directions).Q
        right = momentum.T @ left
        momentum.addmm_(left, right.T, alpha=group["momentum"] - 1)
        directions.copy_(_unit(right))
        decay(weight, group)
        weight.addmm_(left, directions.T, alpha=-group["lr"] * math.sqrt(outputs / inputs))


def _unit(columns: Tensor) -> Tensor:
    """Columns scaled to norm 1; a column of zeros stays."""
    length: Tensor = torch.linalg.vector_norm(columns, dim=0, keepdim=True)
    return columns / length.clamp_min(torch.finfo(columns.dtype).tiny)
