"""Kernels of products of groups, accumulated in float32. Imports Triton. See `finetooth_kernels.grouped`."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def grouped_rows_kernel(
    x, weight, left, right, groups, firsts, lasts, out, h_out, scale, WIDTH, D, R, stride_xn, stride_xd,
    stride_wg, stride_wd, stride_wo, stride_lg, stride_ld, stride_lr, stride_rg, stride_rr, stride_ro, stride_on,
    ADDED: tl.constexpr, WHOLE_DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one group times that group's matrix; a tile without rows writes nothing.

    groups, firsts and lasts say for each tile which group it is of, its first row, and the row behind the group's last.
    ADDED also multiplies the rows by `left`, in the same pass over them, and adds scale times that times `right`; h_out
    gets the rows times `left`, (N, R).
    """
    tile = tl.program_id(0)
    first = tl.load(firsts + tile).to(tl.int64)
    last = tl.load(lasts + tile)
    if first < last:
        group = tl.load(groups + tile).to(tl.int64)
        start_o = (tl.program_id(1) * COLUMNS).to(tl.int64)
        n, o, d, r = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH), tl.arange(0, RANK)
        rows = (n < last - first)[:, None]
        columns = (start_o + o < WIDTH)[None, :]  # masked, not clamped: neighbours stay neighbours, read as one
        directions = (r < R)[None, :]
        # 64 bits only in what all places of a tile share: an offset inside it takes one register
        x += first * stride_xn
        x_nd = x + n[:, None] * stride_xn + d[None, :] * stride_xd
        weight += group * stride_wg + start_o * stride_wo
        w_do = weight + d[:, None] * stride_wd + o[None, :] * stride_wo
        left += group * stride_lg
        a_dr = left + d[:, None] * stride_ld + r[None, :] * stride_lr
        y = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        h = tl.zeros((ROWS, RANK), dtype=tl.float32)
        for start in range(0, D, DEPTH):
            inside = d < D - start
            if WHOLE_DEPTH:
                x_tile = tl.load(x_nd, mask=rows, other=0.0)
                w_tile = tl.load(w_do, mask=columns, other=0.0)
            else:
                x_tile = tl.load(x_nd, mask=rows & inside[None, :], other=0.0)
                w_tile = tl.load(w_do, mask=columns & inside[:, None], other=0.0)
            if WIDEN:  # see `head_kernels.linear_tile`
                x_tile = x_tile.to(tl.float32)
                w_tile = w_tile.to(tl.float32)
            y = tl.dot(x_tile, w_tile, y, input_precision=PRECISION)
            if ADDED:
                a_tile = tl.load(a_dr, mask=directions & inside[:, None], other=0.0)
                if WIDEN:
                    a_tile = a_tile.to(tl.float32)
                h = tl.dot(x_tile, a_tile, h, input_precision=PRECISION)
                a_dr += DEPTH * stride_ld
            x_nd += DEPTH * stride_xd
            w_do += DEPTH * stride_wd
        if ADDED:
            right += group * stride_rg + start_o * stride_ro
            b_tile = tl.load(
                right + r[:, None] * stride_rr + o[None, :] * stride_ro, mask=(r < R)[:, None] & columns, other=0.0
            )
            scaled = (h * scale).to(x.dtype.element_ty)
            if WIDEN:
                scaled = scaled.to(tl.float32)
                b_tile = b_tile.to(tl.float32)
            y = tl.dot(scaled, b_tile, y, input_precision=PRECISION)
            if tl.program_id(1) == 0:
                h_nr = h_out + first * R + n[:, None] * R + r[None, :]
                tl.store(h_nr, h.to(h_out.dtype.element_ty), mask=rows & directions)
        y_no = out + first * stride_on + start_o + n[:, None] * stride_on + o[None, :]
        tl.store(y_no, y.to(out.dtype.element_ty), mask=rows & columns)


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
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        result = tl.dot(a, b, result, input_precision=PRECISION)
    place = out + group.to(tl.int64) * D * WIDTH + d[:, None] * WIDTH + o[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=(d < D)[:, None] & (o < WIDTH)[None, :])
