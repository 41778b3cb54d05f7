"""Linear layers with dropout by Triton kernels, which make the mask from its words while they multiply."""

from __future__ import annotations

import torch
from finetooth_kernels.dropout import Dropped
from finetooth_kernels.low_rank_linear import Masked, Multiply, torch_masked
from torch import Tensor

from finetooth_triton import gpu
from finetooth_triton.layers import power, readable

__all__ = ["MASKED"]

TILES = gpu.Tiles(64, 64, 32, warps=4, stages=2)
"""Rows and columns of x, and the length of a sum's step."""
LEAST, MOST = 16, 64
"""Directions that a program multiplies."""
PART = 1024
"""Rows of a partial sum of the gradient of A."""
WORKSPACE = 64 * 2**20
"""Bytes of partial sums that are held at once."""


def _narrow(x_nd: Tensor, of: Dropped | None, a_rd: Tensor, multiply: Multiply) -> Tensor:
    if of is None or not readable(x_nd, a_rd, strided=True):
        return torch_masked.narrow(x_nd, of, a_rd, multiply)
    from finetooth_triton.masked_kernels import masked_narrow_kernel

    (rows, width), rank, tile = x_nd.shape, a_rd.shape[0], _directions(a_rd.shape[0])
    out_nr = x_nd.new_empty((rows, rank))
    with gpu.on(x_nd.device):
        masked_narrow_kernel[(-(-rows // TILES.rows), -(-rank // tile))](
            x_nd, *_words(of), a_rd, out_nr, rows, width, rank, of.threshold, *x_nd.stride(), *a_rd.stride(),
            ROWS=TILES.rows, RANK=tile, DEPTH=TILES.depth, **_options(x_nd.dtype),
        )  # fmt: skip
    return out_nr


def _factor(d_nr: Tensor, x_nd: Tensor, of: Dropped | None, multiply: Multiply) -> Tensor:
    if of is None or not readable(x_nd, d_nr, strided=True):
        return torch_masked.factor(d_nr, x_nd, of, multiply)
    from finetooth_triton.masked_kernels import masked_factor_kernel

    (rows, width), rank, tile = x_nd.shape, d_nr.shape[1], _directions(d_nr.shape[1])
    parts, (row_words, column_words), out_rd = -(-rows // PART), _words(of), x_nd.new_empty((rank, width))
    most = _most(rank, tile, parts * TILES.columns)
    wide = _most(width, TILES.columns, parts * most)
    with gpu.on(x_nd.device):
        for r, d in zip(range(0, rank, most), torch.split(d_nr, most, 1), strict=True):
            for c, x in zip(range(0, width, wide), torch.split(x_nd, wide, 1), strict=True):
                partial_prd = x.new_empty((parts, d.shape[1], x.shape[1]), dtype=torch.float32)
                masked_factor_kernel[(-(-x.shape[1] // TILES.columns), parts, -(-d.shape[1] // tile))](
                    d, x, row_words, column_words[c:], partial_prd, rows, x.shape[1], d.shape[1], of.threshold,
                    *d.stride(), *x.stride(), PART=PART, ROWS=TILES.depth, RANK=tile, COLUMNS=TILES.columns,
                    **_options(x.dtype),
                )  # fmt: skip
                out_rd[r : r + most, c : c + wide] = partial_prd.sum(0)
    return out_rd


def _most(count: int, step: int, each: int) -> int:
    """Of `count` sums with `each` numbers as many as `WORKSPACE` holds, in whole steps and at least one."""
    return min(count, max(step, WORKSPACE // (4 * each) // step * step))


def _rows(d_nr: Tensor, a_rd: Tensor, of: Dropped | None, sum_nd: Tensor | None, multiply: Multiply) -> Tensor:
    if of is None or not readable(d_nr, a_rd, strided=True):
        return torch_masked.rows(d_nr, a_rd, of, sum_nd, multiply)
    from finetooth_triton.masked_kernels import masked_rows_kernel

    (rows, rank), width = d_nr.shape, a_rd.shape[1]
    out_nd = d_nr.new_empty((rows, width)) if sum_nd is None else sum_nd
    with gpu.on(d_nr.device):
        masked_rows_kernel[(-(-rows // TILES.rows), -(-width // TILES.columns))](
            d_nr, a_rd, *_words(of), out_nd, out_nd, rows, width, rank, of.threshold, *d_nr.stride(), *a_rd.stride(),
            HAS_BASE=sum_nd is not None, ROWS=TILES.rows, COLUMNS=TILES.columns, DEPTH=LEAST, **_options(d_nr.dtype),
        )  # fmt: skip
    return out_nd


def _words(of: Dropped) -> tuple[Tensor, Tensor]:
    return of.rows_n.contiguous(), of.columns_d.contiguous()


def _directions(rank: int) -> int:
    return min(MOST, max(LEAST, power(rank)))


def _options(dtype: torch.dtype) -> dict[str, object]:
    return {
        "PRECISION": gpu.product_precision(dtype), "WIDEN": gpu.interpreted() and dtype == torch.bfloat16,
        "num_warps": TILES.warps, "num_stages": TILES.stages,
    }  # fmt: skip


MASKED = Masked(_narrow, _factor, _rows)
