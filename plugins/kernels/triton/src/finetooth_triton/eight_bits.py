"""Linear layers in 8-bit floating point whose operands Triton's kernels round: two launches for a tensor, which read it
twice and write it once, also where it is to lie column by column."""

from __future__ import annotations

from functools import partial

import torch
from finetooth_kernels.fp8 import Rounded, fp8_linear, rounded
from torch import Tensor

from finetooth_triton import gpu
from finetooth_triton.layers import readable

__all__ = ["fp8_linear_triton", "rounded_triton"]

PARTS = 1024
"""Maxima that every program of the second kernel reads, at most."""
LANES = 4096
"""Numbers that a program of the first kernel holds at once."""
TILE = 64
"""Rows and columns of a program of the second one."""


def rounded_triton(
    t_nd: Tensor, dtype: torch.dtype, *, by_columns: bool = False, scale: Tensor | None = None
) -> Rounded:
    """See `finetooth_kernels.fp8.rounded`."""
    t_nd = t_nd.detach().contiguous()
    if not readable(t_nd):
        return rounded(t_nd, dtype, by_columns=by_columns, scale=scale)
    from finetooth_triton.eight_bit_kernels import largest_kernel, round_kernel

    (rows, columns), size = t_nd.shape, t_nd.numel()
    part = -(-size // (PARTS * LANES)) * LANES
    count, given = -(-size // part), scale is not None
    largest_p = t_nd.new_empty(count, dtype=torch.float32)
    scale = largest_p.new_empty(()) if scale is None else scale
    format = torch.finfo(dtype)
    out = torch.empty((columns, rows) if by_columns else (rows, columns), dtype=dtype, device=t_nd.device)
    with gpu.on(t_nd.device):
        if not given:
            largest_kernel[(count,)](t_nd, largest_p, size, part, COLUMNS=LANES, num_warps=8)
        round_kernel[(-(-rows // TILE), -(-columns // TILE))](
            t_nd, largest_p, scale, out, rows, columns, count, GREATEST=format.max, LEAST=format.smallest_normal,
            PUSH=1.5 * 2**23 * format.eps, TURNED=by_columns, GIVEN=given, PARTS=1 << (count - 1).bit_length(),
            ROWS=TILE, COLUMNS=TILE, num_warps=4,
        )  # fmt: skip
    return Rounded(out.t() if by_columns else out, scale)


fp8_linear_triton = partial(fp8_linear, rounding=rounded_triton)
"""See `finetooth_kernels.fp8.fp8_linear`."""
