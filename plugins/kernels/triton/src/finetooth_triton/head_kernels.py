"""Kernels that multiply hidden states with the head tile by tile, accumulated in float32. Imports Triton.

See `linear_logprob` for how the pieces fit.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

from finetooth_triton.softmax import capped, damping, logit_gradient


@triton.jit
def block_of(program, row_blocks, others, GROUP: tl.constexpr):
    """Which (block of rows, other index) a program takes: GROUP blocks of rows walk through the others together."""
    group = program // (GROUP * others)
    first = group * GROUP
    size = tl.minimum(row_blocks - first, GROUP)
    within = program % (GROUP * others)
    return first + within % size, within // size


@triton.jit
def linear_tile(hidden, weight, bias, rows, columns, D, stride_hm, stride_hd, stride_wv, stride_wd, stride_b,
                HAS_BIAS: tl.constexpr, WHOLE_DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
                ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """hidden[rows] @ weight[columns].T + bias[columns] in float32; rows and columns are valid indices, int64.

    WIDEN multiplies half precision as float32. The products are exact either way; Triton's interpreter needs it, since
    it multiplies bfloat16 as if its bits were integers.
    """
    depth = tl.arange(0, DEPTH)
    left = hidden + rows[:, None] * stride_hm + depth[None, :] * stride_hd
    right = weight + columns[None, :] * stride_wv + depth[:, None] * stride_wd
    result = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, D, DEPTH):
        if WHOLE_DEPTH:
            a = tl.load(left)
            b = tl.load(right)
        else:
            a = tl.load(left, mask=(start + depth)[None, :] < D, other=0.0)
            b = tl.load(right, mask=(start + depth)[:, None] < D, other=0.0)
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        result = tl.dot(a, b, result, input_precision=PRECISION)
        left += DEPTH * stride_hd
        right += DEPTH * stride_wd
    if HAS_BIAS:
        result += tl.load(bias + columns * stride_b).to(tl.float32)[None, :]
    return result


@triton.jit(do_not_specialize=["M", "V"])
def head_linear_kernel(
    hidden, weight, bias, out,
    M, V, D, stride_hm, stride_hd, stride_wv, stride_wd, stride_b, stride_om,
    HAS_BIAS: tl.constexpr, WHOLE_DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of the linear output, (M, V) float32: the sums as they are."""
    row_block, column_block = block_of(tl.program_id(0), tl.cdiv(M, ROWS), tl.cdiv(V, COLUMNS), GROUP)
    rows = row_block * ROWS + tl.arange(0, ROWS)
    columns = column_block * COLUMNS + tl.arange(0, COLUMNS)
    # Rows and columns beyond the end repeat the last one: cheaper than masked loads, and never written.
    safe_rows = tl.minimum(rows, M - 1).to(tl.int64)
    linear = linear_tile(
        hidden, weight, bias, safe_rows, tl.minimum(columns, V - 1).to(tl.int64), D,
        stride_hm, stride_hd, stride_wv, stride_wd, stride_b,
        HAS_BIAS, WHOLE_DEPTH, PRECISION, WIDEN, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    inside = (rows < M)[:, None] & (columns < V)[None, :]
    # 64 bits only in what all places of a tile share: an offset inside it takes one register
    out += (row_block * ROWS).to(tl.int64) * stride_om
    place = tl.arange(0, ROWS)[:, None] * stride_om + columns[None, :]
    tl.store(out + place, linear, mask=inside)


@triton.jit(do_not_specialize=["M", "V", "first_column"])
def head_gradient_kernel(
    hidden, weight, bias, targets, peak, log_total, entropy, d_logprobs, d_entropy, gradient,
    M, V, D, K, first_column, stride_hm, stride_hd, stride_wv, stride_wd, stride_b, stride_gm, inner, outer,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, WITH_ENTROPY: tl.constexpr,
    WHOLE_DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient with respect to the linear output, from logits computed again; the slope is in d_*.

    V is how many rows of the weight there are here; first_column is the id of the first. gradient is (M, V) in the
    dtype of the inputs.
    """
    row_block, column_block = block_of(tl.program_id(0), tl.cdiv(M, ROWS), tl.cdiv(V, COLUMNS), GROUP)
    rows = row_block * ROWS + tl.arange(0, ROWS)
    counted = rows < M
    safe_rows = tl.minimum(rows, M - 1).to(tl.int64)
    lanes = tl.arange(0, COLUMNS)
    start = column_block * COLUMNS
    columns = start + lanes
    linear = linear_tile(
        hidden, weight, bias, safe_rows, tl.minimum(columns, V - 1).to(tl.int64), D,
        stride_hm, stride_hd, stride_wv, stride_wd, stride_b,
        HAS_BIAS, WHOLE_DEPTH, PRECISION, WIDEN, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    logits = capped(linear, inner, outer, HAS_SOFTCAP)
    sum_d = tl.zeros((ROWS,), dtype=tl.float32)
    for k in range(K):
        sum_d += tl.load(d_logprobs + safe_rows * K + k)
    if WITH_ENTROPY:
        own_entropy = tl.load(entropy + safe_rows)
        d_own = tl.load(d_entropy + safe_rows)
    else:
        own_entropy = sum_d
        d_own = sum_d
    result = logit_gradient(
        logits, tl.load(peak + safe_rows), tl.load(log_total + safe_rows), sum_d, own_entropy, d_own, WITH_ENTROPY
    )
    for k in range(K):
        offset = (tl.load(targets + safe_rows * K + k) - first_column - start).to(tl.int32)
        if tl.max(((offset >= 0) & (offset < COLUMNS)).to(tl.int32), 0) > 0:
            d_own_target = tl.load(d_logprobs + safe_rows * K + k)
            result = tl.where(lanes[None, :] == offset[:, None], result + d_own_target[:, None], result)
    if HAS_SOFTCAP:
        result *= damping(linear, inner)
    inside = counted[:, None] & (columns < V)[None, :]
    gradient += (row_block * ROWS).to(tl.int64) * stride_gm + start
    out = gradient + (tl.arange(0, ROWS)[:, None] * stride_gm + lanes[None, :])
    tl.store(out, result.to(gradient.dtype.element_ty), mask=inside)
