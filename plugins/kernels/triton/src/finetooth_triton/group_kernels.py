"""Kernels of products of groups, accumulated in float32. Imports Triton. See `finetooth_kernels.grouped`."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

from finetooth_triton.head_kernels import linear_tile


@triton.jit
def grouped_rows_kernel(
    x, weight, groups, firsts, lasts, out, WIDTH, D, stride_xn, stride_xd, stride_wg, stride_wd, stride_wo, stride_on,
    WHOLE_DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one group times that group's matrix; a tile without rows writes nothing.

    groups, firsts and lasts say for each tile which group it is of, its first row, and the row behind the group's last.
    """
    tile = tl.program_id(0)
    first = tl.load(firsts + tile)
    last = tl.load(lasts + tile)
    if first < last:
        group = tl.load(groups + tile).to(tl.int64)
        rows = first + tl.arange(0, ROWS)
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        # Rows and columns beyond the end repeat the last one, and are never written.
        safe_rows = tl.minimum(rows, last - 1).to(tl.int64)
        product = linear_tile(
            x, weight + group * stride_wg, weight, safe_rows, tl.minimum(columns, WIDTH - 1).to(tl.int64), D,
            stride_xn, stride_xd, stride_wo, stride_wd, 0,
            False, WHOLE_DEPTH, PRECISION, WIDEN, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        inside = (rows < last)[:, None] & (columns < WIDTH)[None, :]
        place = out + safe_rows[:, None] * stride_on + columns[None, :]
        tl.store(place, product.to(out.dtype.element_ty), mask=inside)


@triton.jit
def grouped_matrices_kernel(
    x, dy, firsts, lasts, out, D, WIDTH, stride_xn, stride_xd, stride_yn, stride_yo,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of x^T dy over the rows of a group, (G, D, O)."""
    group = tl.program_id(0)
    last = tl.load(lasts + group)
    d = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    o = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    result = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(tl.load(firsts + group), last, DEPTH):
        rows = start + tl.arange(0, DEPTH)
        counted = rows < last
        places = rows.to(tl.int64)
        left = x + places[None, :] * stride_xn + d[:, None] * stride_xd
        right = dy + places[:, None] * stride_yn + o[None, :] * stride_yo
        a = tl.load(left, mask=counted[None, :] & (d < D)[:, None], other=0.0)
        b = tl.load(right, mask=counted[:, None] & (o < WIDTH)[None, :], other=0.0)
        if WIDEN:  # see `linear_tile`
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        result = tl.dot(a, b, result, input_precision=PRECISION)
    place = out + group.to(tl.int64) * D * WIDTH + d[:, None] * WIDTH + o[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=(d < D)[:, None] & (o < WIDTH)[None, :])
