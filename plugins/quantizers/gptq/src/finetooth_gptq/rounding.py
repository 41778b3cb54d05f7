"""GPTQ: rounding a weight column by column, each error made up for by the columns that are not rounded yet.

Frantar et al., 2022, arXiv:2210.17323, algorithm 1: with H = 2 X X^T of what the module reads and the upper Cholesky
factor C of H^-1, column i is rounded to q_i, and w_j -= (w_i - q_i) C_ij / C_ii for all later j. Scales and zeros of a
group are those of its weights before any was changed, so that groups are inputs side by side in whatever order they
are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from finetooth_torchshared.grouped_linear import Bits, Grouped
from torch import Tensor

BLOCK = 128
"""Columns whose errors are spread over all later ones together."""


@dataclass(frozen=True)
class Grid:
    """The levels that weights may take.

    Attributes:
        scales: (outputs, groups), bf16.
        zeros: (outputs, groups), uint8.
        group: inputs side by side.
        most: the greatest code.
    """

    scales: Tensor
    zeros: Tensor
    group: int
    most: int

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest of each of (outputs, inputs), uint8."""
        scales, zeros = self.spread(weight.shape[1])
        return (weight / scales + zeros).round().clamp(0, self.most).to(torch.uint8)

    def spread(self, inputs: int) -> tuple[Tensor, Tensor]:
        """Scales and zeros of each weight, (outputs, inputs) fp32."""
        both = (of.float().repeat_interleave(self.group, 1)[:, :inputs] for of in (self.scales, self.zeros))
        scales, zeros = both
        return scales, zeros


def grid_of(weight: Tensor, group: int, bits: Bits, *, symmetric: bool = False) -> Grid:
    """Levels from the least weight of a group to its greatest, 0 among them.

    Args:
        weight: (outputs, inputs) fp32.
        symmetric: as far to either side, with the middle code for 0.
    """
    short = -weight.shape[1] % group
    groups = torch.nn.functional.pad(weight, (0, short)).view(len(weight), -1, group)
    least, greatest = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    if symmetric:
        greatest = torch.maximum(greatest, -least)
        least = -greatest
    most = (1 << bits) - 1
    scales = ((greatest - least) / most).bfloat16()
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    middle = torch.full_like(scales, 1 << bits - 1, dtype=torch.uint8)
    zeros = middle if symmetric else (-least / scales.float()).round().clamp(0, most).to(torch.uint8)
    return Grid(scales, zeros, group, most)


def nearest(weight: Tensor, group: int, bits: Bits) -> Grouped:
    """Each weight by itself."""
    weight = weight.detach().float()
    grid = grid_of(weight, group, bits)
    return Grouped(grid.codes(weight), grid.scales, grid.zeros, None, bits, group)


def rounded(
    weight: Tensor, hessian: Tensor, group: int, bits: Bits, *, damping: float, ordered: bool, symmetric: bool = False,
) -> Grouped:  # fmt: skip
    """A weight by GPTQ.

    Args:
        weight: (outputs, inputs).
        hessian: (inputs, inputs) fp32, X X^T of what the module reads, in any multiple.
        damping: share of the Hessian's mean diagonal that is added to it.
        ordered: round the inputs that matter most first, by the Hessian's diagonal.
        symmetric: see `grid_of`.
    """
    weight = weight.detach().float().clone()
    grid = grid_of(weight, group, bits, symmetric=symmetric)
    scales, zeros = grid.spread(weight.shape[1])
    hessian = hessian.clone()
    unused = hessian.diagonal() == 0
    hessian.diagonal()[unused] = 1
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    order = hessian.diagonal().argsort(descending=True, stable=True) if ordered else torch.arange(len(hessian))
    order = order.to(weight.device)
    w, s, z = weight[:, order], scales[:, order], zeros[:, order]
    factor = _factor(hessian[order][:, order])
    codes = torch.empty_like(w)
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        errors = torch.empty_like(w[:, start:stop])
        for i in range(start, stop):
            codes[:, i] = (w[:, i] / s[:, i] + z[:, i]).round().clamp(0, grid.most)
            errors[:, i - start] = (w[:, i] - (codes[:, i] - z[:, i]) * s[:, i]) / factor[i, i]
            w[:, i:stop] -= errors[:, i - start, None] * factor[i, i:stop]
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    placed = torch.empty_like(codes)
    placed[:, order] = codes
    return Grouped(placed.to(torch.uint8), grid.scales, grid.zeros, None, bits, group)


def _factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse; by the host where the device has no such operation, as Apple's."""
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except NotImplementedError:
        return _factor(hessian.cpu()).to(hessian.device)
    return factor


def joined(parts: Sequence[Grouped]) -> Grouped:
    """Weights of the same inputs as one, the outputs of each after those of the one before it."""
    codes, scales = torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts])
    zeros = torch.cat([part.zeros for part in parts if part.zeros is not None])
    return Grouped(codes, scales, zeros, None, parts[0].bits, parts[0].group)
