"""Kernels of DoRA: lengths of the rows of W + s B A, and products that they scale. Imports Triton.

See `finetooth_kernels.low_rank_linear`. Everything is summed in float32 and in a fixed order.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

from finetooth_triton.head_kernels import linear_tile


@triton.jit
def row_lengths_kernel(
    weight, a, b, out, OUTPUTS, D, R, scale, stride_wo, stride_wd, stride_ar, stride_ad, stride_bo, stride_br,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The lengths of some rows: W + s B A is there a tile at a time."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # Rows and columns beyond the end repeat the last one; the first are never written, the second not counted.
    safe_rows = tl.minimum(rows, OUTPUTS - 1).to(tl.int64)
    squares = tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(0, D, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        safe_columns = tl.minimum(columns, D - 1).to(tl.int64)
        added = linear_tile(
            b, a, a, safe_rows, safe_columns, R, stride_bo, stride_br, stride_ad, stride_ar, 0,
            False, False, PRECISION, WIDEN, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        place = weight + safe_rows[:, None] * stride_wo + safe_columns[None, :] * stride_wd
        whole = tl.load(place).to(tl.float32) + scale * added
        squares += tl.sum(tl.where((columns < D)[None, :], whole * whole, 0.0), 1)
    tl.store(out + safe_rows, tl.sqrt(squares), mask=rows < OUTPUTS)


@triton.jit
def scaled_kernel(
    wide, gains, bias, base, out, kept, OUTPUTS, HAS_BIAS: tl.constexpr, HAS_BASE: tl.constexpr, COLUMNS: tl.constexpr
):
    """A part of a row: g p + b + base, rounded, and p, rounded."""
    row = tl.program_id(0).to(tl.int64) * OUTPUTS
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < OUTPUTS
    product = tl.load(wide + row + columns, mask=inside)
    result = product * tl.load(gains + columns, mask=inside)
    if HAS_BIAS:
        result += tl.load(bias + columns, mask=inside).to(tl.float32)
    if HAS_BASE:
        result += tl.load(base + row + columns, mask=inside).to(tl.float32)
    tl.store(out + row + columns, result.to(out.dtype.element_ty), mask=inside)
    tl.store(kept + row + columns, product.to(kept.dtype.element_ty), mask=inside)


@triton.jit
def scaled_backward_kernel(
    grad, kept, gains, d_product, partial, N, OUTPUTS, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Some rows and columns: g dy, and the sum of dy p over the rows."""
    block = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < OUTPUTS
    gain = tl.load(gains + columns, mask=inside)
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    first = block * ROWS
    for i in range(tl.minimum(ROWS, N - first)):
        place = (first + i) * OUTPUTS + columns
        dy = tl.load(grad + place, mask=inside).to(tl.float32)
        total += dy * tl.load(kept + place, mask=inside).to(tl.float32)
        tl.store(d_product + place, (dy * gain).to(d_product.dtype.element_ty), mask=inside)
    tl.store(partial + block * OUTPUTS + columns, total, mask=inside)
