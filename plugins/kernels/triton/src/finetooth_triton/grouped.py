"""Products of groups by Triton kernels: nothing of the groups is read on the host."""

from __future__ import annotations

from dataclasses import replace

import torch
from finetooth_kernels.grouped import Form, LowRankAddition, Products, form_of, grouped_matmul
from torch import Tensor

from finetooth_triton import gpu
from finetooth_triton.layers import readable

__all__ = ["grouped_matmul_triton"]

LEAST, MOST = 16, 256
"""Rows or columns of a tile."""
SUMS, FUSED_SUMS = 128, 80
"""Sums that a thread may hold, of the 255 registers that it has at most: the rest are operands and their places, of
which a fused product has more, and float32 twice as many."""


def grouped_matmul_triton(
    x_nd: Tensor,
    weight_gdo: Tensor,
    ends_g: Tensor,
    addition: LowRankAddition | None = None,
    *,
    form: Form | None = None,
) -> Tensor:
    """See `finetooth_kernels.grouped.grouped_matmul`. Sums are in float32, and every product is rounded once.

    Args:
        form: `fused` or `split`; None: `form_of` chooses.
    """
    if not readable(x_nd, weight_gdo, strided=True):
        return grouped_matmul(x_nd, weight_gdo, ends_g, addition)
    if addition is not None:
        groups, depth, rank = addition[0].shape
        form = form or form_of(groups, depth, weight_gdo.shape[2], rank)
    products = Products(_rows, _matrices, _added if form == "fused" else None)
    return grouped_matmul(x_nd, weight_gdo, ends_g, addition, products=products)


def _rows(x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor) -> Tensor:
    return _launch(x_nd, weight_gdo, ends_g, weight_gdo[:, :, :0], weight_gdo[:, :0], 0.0)[0]


def _added(
    x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor, left_gdr: Tensor, right_gro: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return _launch(x_nd, weight_gdo, ends_g, left_gdr, right_gro, scale)


def _launch(
    x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor, left_gdr: Tensor, right_gro: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The products, and the rows times `left_gdr`; of a rank of 0 nothing is added."""
    from finetooth_triton.group_kernels import grouped_rows_kernel

    (rows, depth), (count, _, width), rank = x_nd.shape, weight_gdo.shape, left_gdr.shape[2]
    out, h_nr = x_nd.new_empty((rows, width)), x_nd.new_empty((rows, rank))
    tiles = _tiles(x_nd, width, depth=depth, rank=rank)
    starts_g = _starts(ends_g)
    last_tiles_g = torch.cumsum((ends_g - starts_g + tiles.rows - 1) // tiles.rows, 0, dtype=torch.int32)
    # more tiles than there can be; those behind the last have no rows
    numbers_t = torch.arange(-(-rows // tiles.rows) + count, dtype=torch.int32, device=x_nd.device)
    groups_t = torch.searchsorted(last_tiles_g, numbers_t, right=True, out_int32=True)
    there_t, groups_t = groups_t < count, groups_t.clamp(max=count - 1)
    firsts_t = starts_g[groups_t] + (numbers_t - _starts(last_tiles_g)[groups_t]) * tiles.rows
    lasts_t = torch.where(there_t, ends_g[groups_t], 0)
    with gpu.on(x_nd.device):
        grouped_rows_kernel[(len(numbers_t), -(-width // tiles.columns))](
            x_nd, weight_gdo, left_gdr, right_gro, groups_t, firsts_t, lasts_t, out, h_nr, float(scale), width, depth,
            rank, *x_nd.stride(), *weight_gdo.stride(), *left_gdr.stride(), *right_gro.stride(), out.stride(0),
            ADDED=rank > 0, WHOLE_DEPTH=depth % tiles.depth == 0, RANK=_power(rank), **_of_tiles(tiles, x_nd.dtype),
        )  # fmt: skip
    return out, h_nr


def _matrices(x_nd: Tensor, dy_no: Tensor, ends_g: Tensor) -> Tensor:
    from finetooth_triton.group_kernels import grouped_matrices_kernel

    count, depth, width = ends_g.shape[0], x_nd.shape[1], dy_no.shape[1]
    out, tiles = x_nd.new_empty((count, depth, width)), _tiles(x_nd, width, depth)
    tiles = replace(tiles, stages=1) if gpu.in_halves(x_nd.device) else tiles
    with gpu.on(x_nd.device):
        grouped_matrices_kernel[(count, -(-depth // tiles.rows), -(-width // tiles.columns))](
            x_nd, dy_no, _starts(ends_g), ends_g, out, depth, width, *x_nd.stride(), *dy_no.stride(),
            **_of_tiles(tiles, x_nd.dtype),
        )  # fmt: skip
    return out


def _tiles(x_nd: Tensor, columns: int, rows: int = MOST, *, depth: int = 0, rank: int = 0) -> gpu.Tiles:
    """Tiles for a result of so many rows and columns, whose sums fit into registers."""
    tiles = gpu.tiles_for(x_nd.dtype, x_nd.device)
    rows, columns = min(tiles.rows, _power(rows)), min(tiles.columns, _power(columns))
    added, sums = (_power(rank), FUSED_SUMS) if rank else (0, SUMS)
    most = sums * 64 * tiles.warps // x_nd.element_size()
    while columns > LEAST and rows * (columns + added) > most:
        columns //= 2
    deep = min(tiles.depth, 32) if depth % tiles.depth else tiles.depth  # masks take registers
    return replace(tiles, rows=rows, columns=columns, depth=deep)


def _power(size: int) -> int:
    """The next power of 2 that Triton multiplies."""
    return int(max(LEAST, 1 << (size - 1).bit_length()))


def _starts(ends_g: Tensor) -> Tensor:
    return torch.cat([ends_g.new_zeros(1), ends_g[:-1]])


def _of_tiles(tiles: gpu.Tiles, dtype: torch.dtype) -> dict[str, object]:
    return {
        "PRECISION": gpu.product_precision(dtype), "WIDEN": gpu.interpreted() and dtype == torch.bfloat16,
        "ROWS": tiles.rows, "COLUMNS": tiles.columns, "DEPTH": tiles.depth,
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
