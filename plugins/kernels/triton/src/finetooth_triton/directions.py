"""DoRA by Triton kernels: no W + s B A is held, and each tensor as large as the outputs is read once."""

from __future__ import annotations

from functools import partial

import torch
from finetooth_kernels.low_rank_linear import Directions, low_rank_linear, torch_directions
from torch import Tensor

from finetooth_triton import gpu
from finetooth_triton.layers import readable
from finetooth_triton.masked import MASKED

__all__ = ["low_rank_linear_triton"]

TILES = gpu.Tiles(32, 64, 16, warps=4, stages=2)
"""Of W + s B A while rows are measured."""
SCALED = 1024
"""Numbers that a program scales."""
ROWS_A_SUM, COLUMNS_A_SUM = 64, 256
"""Rows and columns of a partial sum of the gradient of lengths."""


def _lengths(weight_od: Tensor, a_rd: Tensor, b_or: Tensor, scale: float) -> Tensor:
    if not readable(weight_od, a_rd, b_or, strided=True):
        return torch_directions.lengths(weight_od, a_rd, b_or, scale)
    from finetooth_triton.direction_kernels import row_lengths_kernel

    outputs, width = weight_od.shape
    out = weight_od.new_empty(outputs, dtype=torch.float32)
    with gpu.on(weight_od.device):
        row_lengths_kernel[(-(-outputs // TILES.rows),)](
            weight_od, a_rd, b_or, out, outputs, width, a_rd.shape[0], scale,
            *weight_od.stride(), *a_rd.stride(), *b_or.stride(), PRECISION=gpu.product_precision(weight_od.dtype),
            WIDEN=gpu.interpreted() and weight_od.dtype == torch.bfloat16, ROWS=TILES.rows, COLUMNS=TILES.columns,
            DEPTH=TILES.depth, num_warps=TILES.warps, num_stages=TILES.stages,
        )  # fmt: skip
    return out


def _scaled(
    wide_no: Tensor, gains_o: Tensor, bias_o: Tensor | None, base_no: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    more = [x for x in (bias_o, base_no) if x is not None]
    if not readable(wide_no, gains_o) or not all(map(readable, more)):
        return torch_directions.scaled(wide_no, gains_o, bias_o, base_no, dtype)
    from finetooth_triton.direction_kernels import scaled_kernel

    rows, width = wide_no.shape
    y_no = wide_no.new_empty((rows, width), dtype=dtype if base_no is None else base_no.dtype)
    kept_no = wide_no.new_empty((rows, width), dtype=dtype)
    with gpu.on(wide_no.device):
        scaled_kernel[(rows, -(-width // SCALED))](
            wide_no, gains_o, gains_o if bias_o is None else bias_o, wide_no if base_no is None else base_no, y_no,
            kept_no, width, HAS_BIAS=bias_o is not None, HAS_BASE=base_no is not None, COLUMNS=SCALED, num_warps=4,
        )  # fmt: skip
    return y_no, kept_no


def _backward(grad_no: Tensor, product_no: Tensor, gains_o: Tensor) -> tuple[Tensor, Tensor]:
    grad_no = grad_no.contiguous()
    if not all(map(readable, (grad_no, product_no, gains_o))):
        return torch_directions.backward(grad_no, product_no, gains_o)
    from finetooth_triton.direction_kernels import scaled_backward_kernel

    rows, width = grad_no.shape
    blocks = -(-rows // ROWS_A_SUM)
    d_product, partial_bo = torch.empty_like(product_no), gains_o.new_empty((blocks, width))
    with gpu.on(grad_no.device):
        scaled_backward_kernel[(blocks, -(-width // COLUMNS_A_SUM))](
            grad_no, product_no, gains_o, d_product, partial_bo, rows, width, ROWS=ROWS_A_SUM, COLUMNS=COLUMNS_A_SUM,
            num_warps=4,
        )  # fmt: skip
    return d_product, partial_bo.sum(0)


low_rank_linear_triton = partial(low_rank_linear, directions=Directions(_lengths, _scaled, _backward), masked=MASKED)
"""See `finetooth_kernels.low_rank_linear.low_rank_linear`. Products are torch's, but for those with dropped rows, and
what DoRA adds is here."""
