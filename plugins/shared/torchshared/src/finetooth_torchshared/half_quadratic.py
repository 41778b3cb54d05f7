"""Half-quadratic quantization: minima of groups under which a few weights may be far off.

Badri and Shaji, 2023, "Half-Quadratic Quantization of Large Machine Learning Models", equations 3 to 6: the sum of
|error|^p is least, where p < 1 counts what is far off less than squares do. Scales stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

P, BETA, GROWTH, ROUNDS = 0.7, 10.0, 1.01, 20
"""The norm, the first weight of the penalty, its growth from round to round, and rounds, as the authors' package has
them."""
TINY = 1e-12
"""In place of an error of 0, whose power would be infinite."""


def best_minima(groups: Tensor, scales: Tensor, minima: Tensor, stored: Callable[[Tensor], Tensor]) -> Tensor:
    """The minima (..., 1) of groups of 4 bits, whose levels are minimum + code scale.

    Args:
        groups: (..., group) weights in fp32.
        scales: (..., 1) fp32.
        minima: (..., 1) fp32, where the search begins.
        stored: minima as they will be read back.
    """
    best, least, beta = minima, torch.full_like(minima, torch.inf), BETA
    for _ in range(ROUNDS):
        levels = ((groups - minima) / scales).round().clamp(0, 15) * scales
        errors = groups - levels - minima
        far = errors.abs().pow(P).mean(-1, keepdim=True)
        best, least = torch.where(far < least, minima, best), torch.minimum(far, least)
        size = errors.abs()
        shrunk = errors.sign() * (size - size.clamp_min(TINY).pow(P - 1) / beta).clamp_min(0)
        minima, beta = stored((groups - levels - shrunk).mean(-1, keepdim=True)), beta * GROWTH
    return best
