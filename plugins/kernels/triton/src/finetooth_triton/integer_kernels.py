"""Kernels of tensors as integers with a scale, see `finetooth_kernels.integers`. Imports Triton."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

from finetooth_triton.layer_kernels import activated

MIDDLE = tl.constexpr(12582912.0)
"""1.5 * 2^23: a small number that is added to it is rounded to an integer, ties to the even one."""


@triton.jit
def level_of(numbers, zero_point, LOWEST, MOST):
    """int8: quotients by the scale, rounded, moved by the zero point and kept within the levels."""
    near = tl.minimum(tl.maximum(numbers, -512.0), 512.0)
    levels = ((near + MIDDLE) - MIDDLE).to(tl.int32) + zero_point
    return tl.minimum(tl.maximum(levels, LOWEST), MOST).to(tl.int8)


@triton.jit(do_not_specialize=["SIZE", "INNER", "CHANNELS", "LOWEST", "MOST"])
def rescaled_kernel(
    x, scales, zero_points, out, SIZE, INNER, CHANNELS, LOWEST, MOST, BACK: tl.constexpr, WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Numbers to levels, or BACK. INNER numbers in a row share a scale, then the next of CHANNELS takes over.

    WIDE: places need 64 bits, whose division is slow.
    """
    program = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    at = program * COLUMNS + tl.arange(0, COLUMNS)
    here = at < SIZE
    channel = (at // INNER) % CHANNELS
    scale = tl.load(scales + channel, mask=here, other=1.0)
    zero_point = tl.load(zero_points + channel, mask=here, other=0)
    if BACK:
        made = (tl.load(x + at, mask=here, other=0).to(tl.int32) - zero_point).to(tl.float32) * scale
    else:
        numbers = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
        made = level_of(tl.div_rn(numbers, scale), zero_point, LOWEST, MOST)
    tl.store(out + at, made, mask=here)


@triton.jit(do_not_specialize=["M", "N", "K"])
def integer_product_kernel(
    a, a_scale, a_zero, b, b_scale, b_zero, bias, out, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_sa,
    stride_sb, stride_bias, SHIFTED: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile of the product of int8 matrices, summed in int32, then scaled, plus a bias, activated; float32.

    SHIFTED: less the zero points' part, in 64 bits. stride_sa and stride_sb are 0 for a scale of the whole matrix.
    """
    tiles = tl.cdiv(N, COLUMNS)
    first, start_n = tl.program_id(0) // tiles * ROWS, tl.program_id(0) % tiles * COLUMNS
    rows, columns, depth = first + tl.arange(0, ROWS), start_n + tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    # 64 bits only in what all places of a tile share: an offset inside it takes one register
    a += first.to(tl.int64) * stride_am
    b += start_n.to(tl.int64) * stride_bn
    a_mk = a + tl.arange(0, ROWS)[:, None] * stride_am + depth[None, :] * stride_ak
    b_kn = b + depth[:, None] * stride_bk + tl.arange(0, COLUMNS)[None, :] * stride_bn
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    a_sum = tl.zeros((ROWS,), dtype=tl.int32)
    b_sum = tl.zeros((COLUMNS,), dtype=tl.int32)
    for start in range(0, K, DEPTH):
        a_tile = tl.load(a_mk, mask=(rows < M)[:, None] & (depth < K - start)[None, :], other=0)
        b_tile = tl.load(b_kn, mask=(depth < K - start)[:, None] & (columns < N)[None, :], other=0)
        total = tl.dot(a_tile, b_tile, total, out_dtype=tl.int32)
        if SHIFTED:
            a_sum += tl.sum(a_tile.to(tl.int32), 1)
            b_sum += tl.sum(b_tile.to(tl.int32), 0)
        a_mk += DEPTH * stride_ak
        b_kn += DEPTH * stride_bk
    if SHIFTED:
        of_a = tl.load(a_zero + rows * stride_sa, mask=rows < M, other=0).to(tl.int64)[:, None]
        of_b = tl.load(b_zero + columns * stride_sb, mask=columns < N, other=0).to(tl.int64)[None, :]
        exact = total.to(tl.int64) - a_sum.to(tl.int64)[:, None] * of_b
        y = (exact - of_a * (b_sum.to(tl.int64)[None, :] - K * of_b)).to(tl.float32)
    else:
        y = total.to(tl.float32)
    y *= tl.load(a_scale + rows * stride_sa, mask=rows < M, other=0.0)[:, None]
    y *= tl.load(b_scale + columns * stride_sb, mask=columns < N, other=0.0)[None, :]
    if HAS_BIAS:
        y += tl.load(bias + columns * stride_bias, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "relu":
        y = tl.where(y < 0.0, 0.0, y)
    elif ACTIVATION != "none":
        y, _ = activated(y, ACTIVATION)
    place = out + rows[:, None].to(tl.int64) * N + columns[None, :]
    tl.store(place, y, mask=(rows < M)[:, None] & (columns < N)[None, :])


@triton.jit(do_not_specialize=["LOWEST", "MOST"])
def integer_norm_kernel(
    q, scale, weight, bias, bounds, out_scale, out_zero, out, R, D, eps, LOWEST, MOST, HAS_BIAS: tl.constexpr,
    WRITE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A row's layer norm: its least and greatest number into `bounds` (2, R), or with WRITE its levels into `out`.

    Neither shifts by a zero point: the norm takes the mean away. A NaN or an infinity makes both bounds NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    here = columns < D
    codes = tl.load(q + row * D + columns, mask=here, other=0).to(tl.float32)
    apart = tl.where(here, codes - tl.sum(codes, 0) / D, 0.0) * tl.load(scale)
    y = apart / tl.sqrt_rn(tl.sum(apart * apart, 0) / D + eps)
    y *= tl.load(weight + columns, mask=here, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias + columns, mask=here, other=0.0).to(tl.float32)
    if WRITE:
        levels = level_of(tl.div_rn(y, tl.load(out_scale)), tl.load(out_zero), LOWEST, MOST)
        tl.store(out + row * D + columns, levels, mask=here)
    else:
        unknown = tl.sum(tl.where(here, y * 0.0, 0.0), 0)
        tl.store(bounds + row, tl.min(tl.where(here, y, float("inf")), 0) + unknown)
        tl.store(bounds + R + row, tl.max(tl.where(here, y, float("-inf")), 0) + unknown)
