"""DoRA in a group of linear layers: rows of W + s B A keep their directions, and their lengths train apart.

    y = g * (x W^T + s (x A^T) B^T) + b,    g = m / |W + s B A|        (Liu et al., 2024, arXiv:2402.09353, eq. 5)

The lengths |W + s B A| count as constants in backward (section 4.3 of the paper). With dy the gradient and p what g
multiplies, the gradient of p is g * dy, and that of m is the sum of dy * p over rows, divided by the lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from finetooth_kernels.contract import result_dtype

__all__ = ["Directions", "row_lengths", "torch_directions"]

PIECE = {"cpu": 1 << 18}
"""Weights of W + s B A that are there at once while rows are measured, by the kind of device."""
LARGE_PIECE = 1 << 24
"""The same on a GPU, where each piece costs three launches."""


class Directions(NamedTuple):
    """What DoRA adds to the products of a group.

    Attributes:
        lengths: W (O, D), A (r, D), B (O, r) and s to (O,), the lengths of the rows of W + s B A, in full precision.
        scaled: p (N, O) and g (O,) in full precision, b (O,) or None, what is added to (N, O) or None, and a dtype, to
            g p + b + what is added, rounded once to the dtype of that, else to the dtype; and p in the dtype. What p
            lay in may be written to.
        backward: dy (N, O), p (N, O) as `scaled` gave it, and g to g dy in the dtype of p, and the sum of dy p over
            rows (O,) in full precision.
    """

    lengths: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    scaled: Callable[[Tensor, Tensor, Tensor | None, Tensor | None, torch.dtype], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def row_lengths(weight_od: Tensor, a_rd: Tensor, b_or: Tensor, scale: float) -> Tensor:
    """(O,), the lengths of the rows of W + s B A in full precision, measured a few rows at a time."""
    wide = result_dtype(weight_od.dtype)
    rows = max(1, PIECE.get(weight_od.device.type, LARGE_PIECE) // max(1, weight_od.shape[1]))
    a, lengths = a_rd.to(wide), []
    for start in range(0, weight_od.shape[0], rows):
        part, of_b = weight_od[start : start + rows].to(wide), b_or[start : start + rows].to(wide)
        lengths.append(torch.linalg.vector_norm(torch.addmm(part, of_b, a, alpha=scale), dim=1))
    return torch.cat(lengths)


def _scaled(
    wide_no: Tensor, gains_o: Tensor, bias_o: Tensor | None, base_no: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    kept_no = wide_no.to(dtype)
    y_no = wide_no * gains_o if kept_no is wide_no else wide_no.mul_(gains_o)
    for added in (bias_o, base_no):
        if added is not None:
            y_no += added
    return y_no.to(dtype if base_no is None else base_no.dtype), kept_no


def _backward(grad_no: Tensor, product_no: Tensor, gains_o: Tensor) -> tuple[Tensor, Tensor]:
    wide = grad_no.to(gains_o.dtype)
    return (wide * gains_o).to(product_no.dtype), (wide * product_no).sum(0)


torch_directions = Directions(row_lengths, _scaled, _backward)
"""Torch's own operations."""
