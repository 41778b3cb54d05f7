"""Products of groups by Triton kernels: nothing of the groups is read on the host."""

from __future__ import annotations

import torch
from finetooth_kernels.grouped import LowRankAddition, Products, grouped_matmul
from torch import Tensor

from finetooth_triton import gpu
from finetooth_triton.layers import readable

__all__ = ["grouped_matmul_triton"]


def grouped_matmul_triton(
    x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor, addition: LowRankAddition | None = None
) -> Tensor:
    """See `finetooth_kernels.grouped.grouped_matmul`. Sums are in float32, and every product is rounded once."""
    if not readable(x_nd, weight_gdo, strided=True):
        return grouped_matmul(x_nd, weight_gdo, ends_g, addition)
    return grouped_matmul(x_nd, weight_gdo, ends_g, addition, products=Products(_rows, _matrices))


def _rows(x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor) -> Tensor:
    from finetooth_triton.group_kernels import grouped_rows_kernel

    (rows, depth), (count, _, width) = x_nd.shape, weight_gdo.shape
    out, tiles = x_nd.new_empty((rows, width)), gpu.tiles_for(x_nd.dtype, x_nd.device)
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
            x_nd, weight_gdo, groups_t, firsts_t, lasts_t, out, width, depth, *x_nd.stride(), *weight_gdo.stride(),
            out.stride(0), WHOLE_DEPTH=depth % tiles.depth == 0, **_of_tiles(tiles, x_nd.dtype),
        )  # fmt: skip
    return out


def _matrices(x_nd: Tensor, dy_no: Tensor, ends_g: Tensor) -> Tensor:
    from finetooth_triton.group_kernels import grouped_matrices_kernel

    count, depth, width = ends_g.shape[0], x_nd.shape[1], dy_no.shape[1]
    out, tiles = x_nd.new_empty((count, depth, width)), gpu.tiles_for(x_nd.dtype, x_nd.device)
    with gpu.on(x_nd.device):
        grouped_matrices_kernel[(count, -(-depth // tiles.rows), -(-width // tiles.columns))](
            x_nd, dy_no, _starts(ends_g), ends_g, out, depth, width, *x_nd.stride(), *dy_no.stride(),
            **_of_tiles(tiles, x_nd.dtype),
        )  # fmt: skip
    return out


def _starts(ends_g: Tensor) -> Tensor:
    return torch.cat([ends_g.new_zeros(1), ends_g[:-1]])


def _of_tiles(tiles: gpu.Tiles, dtype: torch.dtype) -> dict[str, object]:
    return {
        "PRECISION": gpu.product_precision(dtype), "WIDEN": gpu.interpreted() and dtype == torch.bfloat16,
        "ROWS": tiles.rows, "COLUMNS": tiles.columns, "DEPTH": tiles.depth,
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
