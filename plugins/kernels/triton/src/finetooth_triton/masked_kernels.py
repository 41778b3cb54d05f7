"""Kernels of products with rows of which numbers are dropped: the mask m is made from its words, a tile at a time, and
m x is never in memory. Imports Triton.

See `finetooth_kernels.low_rank_linear`. Everything is summed in float32 and in a fixed order.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

from finetooth_triton.head_kernels import linear_tile
from finetooth_triton.layer_kernels import stays


@triton.jit
def masked_tile(
    x, row_words, column_words, rows, columns, N, D, threshold, stride_xn, stride_xd, WIDEN: tl.constexpr
):  # fmt: skip
    """m x of some rows and columns; 0 beyond the last ones."""
    here = (rows < N)[:, None] & (columns < D)[None, :]
    of_rows = tl.load(row_words + rows, mask=rows < N, other=0)
    of_columns = tl.load(column_words + columns, mask=columns < D, other=0)
    place = x + rows.to(tl.int64)[:, None] * stride_xn + columns.to(tl.int64)[None, :] * stride_xd
    tile = tl.load(place, mask=here, other=0.0)
    tile = tl.where(stays(of_rows[:, None] ^ of_columns[None, :], threshold), tile, 0.0)
    if WIDEN:  # see `head_kernels.linear_tile`
        tile = tile.to(tl.float32)
    return tile


@triton.jit(do_not_specialize=["N"])
def masked_narrow_kernel(
    x, row_words, column_words, a, out, N, D, R, threshold, stride_xn, stride_xd, stride_ar, stride_ad,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """(m x) A^T of some rows and directions."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    r = tl.program_id(1) * RANK + tl.arange(0, RANK)
    result = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for start in range(0, D, DEPTH):
        columns = start + tl.arange(0, DEPTH)
        tile = masked_tile(x, row_words, column_words, rows, columns, N, D, threshold, stride_xn, stride_xd, WIDEN)
        place = a + r.to(tl.int64)[None, :] * stride_ar + columns.to(tl.int64)[:, None] * stride_ad
        a_tile = tl.load(place, mask=(r < R)[None, :] & (columns < D)[:, None], other=0.0)
        if WIDEN:
            a_tile = a_tile.to(tl.float32)
        result = tl.dot(tile, a_tile, result, input_precision=PRECISION)
    place = out + rows.to(tl.int64)[:, None] * R + r[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=(rows < N)[:, None] & (r < R)[None, :])


@triton.jit(do_not_specialize=["N"])
def masked_factor_kernel(
    d, x, row_words, column_words, partial, N, D, R, threshold, stride_dn, stride_dr, stride_xn, stride_xd,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, PART: tl.constexpr,
    ROWS: tl.constexpr, RANK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """d^T (m x) over PART rows, for some columns and directions."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.program_id(2) * RANK + tl.arange(0, RANK)
    first = tl.program_id(1) * PART
    result = tl.zeros((RANK, COLUMNS), dtype=tl.float32)
    for start in range(first, tl.minimum(first + PART, N), ROWS):
        rows = start + tl.arange(0, ROWS)
        tile = masked_tile(x, row_words, column_words, rows, columns, N, D, threshold, stride_xn, stride_xd, WIDEN)
        place = d + rows.to(tl.int64)[None, :] * stride_dn + r[:, None] * stride_dr
        d_tile = tl.load(place, mask=(rows < N)[None, :] & (r < R)[:, None], other=0.0)
        if WIDEN:
            d_tile = d_tile.to(tl.float32)
        result = tl.dot(d_tile, tile, result, input_precision=PRECISION)
    place = partial + (tl.program_id(1).to(tl.int64) * R + r[:, None]) * D + columns[None, :]
    tl.store(place, result, mask=(r < R)[:, None] & (columns < D)[None, :])


@triton.jit(do_not_specialize=["N"])
def masked_rows_kernel(
    d, a, row_words, column_words, base, out, N, D, R, threshold, stride_dn, stride_dr, stride_ar, stride_ad,
    HAS_BASE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """m (d A) of some rows and columns, plus `base`, which may be `out`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    safe_rows, safe_columns = tl.minimum(rows, N - 1).to(tl.int64), tl.minimum(columns, D - 1).to(tl.int64)
    result = linear_tile(
        d, a, a, safe_rows, safe_columns, R, stride_dn, stride_dr, stride_ad, stride_ar, 0,
        False, False, PRECISION, WIDEN, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    words = tl.load(row_words + safe_rows)[:, None] ^ tl.load(column_words + safe_columns)[None, :]
    result = tl.where(stays(words, threshold), result, 0.0)
    place, here = safe_rows[:, None] * D + safe_columns[None, :], (rows < N)[:, None] & (columns < D)[None, :]
    if HAS_BASE:
        result += tl.load(base + place, mask=here, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=here)
