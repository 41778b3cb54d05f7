"""Kernels that read given logits where they lie, whatever their strides. Imports Triton.

Rows are numbered through two leading dimensions, outer and inner, each with a stride of its own: enough for a batch of
sequences cut, transposed or thinned out without a copy.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

from finetooth_triton.softmax import NEGATIVE_INFINITY, capped, damping, fold, logit_gradient


@triton.jit(do_not_specialize=["rows_inner"])
def row_statistics_kernel(
    logits, index, peaks, log_totals, entropies, tops, logprobs,
    V, K, rows_inner, stride_outer, stride_inner, stride_v, inner, outer,
    HAS_SOFTCAP: tl.constexpr, WITH_ENTROPY: tl.constexpr, WITH_TOP1: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row: its largest logit, the logarithm of sum(exp(z - largest)), entropy, likeliest id, K log-probabilities.

    K = 0: no log-probabilities. inner and outer turn what lies there into logits; see `capped`.
    """
    row = tl.program_id(0).to(tl.int64)
    base = logits + (row // rows_inner) * stride_outer + (row % rows_inner) * stride_inner
    lanes = tl.arange(0, COLUMNS)
    peak = tl.full((1,), NEGATIVE_INFINITY, dtype=tl.float32)
    total = tl.zeros((1,), dtype=tl.float32)
    weighted = tl.zeros((1,), dtype=tl.float32)
    best = tl.zeros((1,), dtype=tl.int32)
    for start in range(0, V, COLUMNS):
        columns = start + lanes
        x = tl.load(base + columns.to(tl.int64) * stride_v, mask=columns < V, other=0.0).to(tl.float32)
        z = tl.where(columns < V, capped(x, inner, outer, HAS_SOFTCAP), NEGATIVE_INFINITY)[None, :]
        if WITH_TOP1:
            top, lane = tl.max(z, 1, return_indices=True)
            best = tl.where(top > peak, start + lane, best)
        else:
            top = tl.max(z, 1)
        peak, total, weighted = fold(peak, total, weighted, z, top, WITH_ENTROPY)
    at = row + tl.arange(0, 1)
    log_total = tl.log(total)
    tl.store(peaks + at, peak)
    tl.store(log_totals + at, log_total)
    if WITH_ENTROPY:
        tl.store(entropies + at, log_total - weighted / total)
    if WITH_TOP1:
        tl.store(tops + at, best)
    for k in range(K):
        target = tl.load(index + at * K + k)
        x = tl.load(base + target * stride_v).to(tl.float32)
        tl.store(logprobs + at * K + k, (capped(x, inner, outer, HAS_SOFTCAP) - peak) - log_total)


@triton.jit(do_not_specialize=["rows_inner"])
def row_gradient_kernel(
    logits, gradient, index, peaks, log_totals, d_logprobs,
    V, K, rows_inner, stride_outer, stride_inner, stride_v, stride_gm, inner, outer,
    HAS_SOFTCAP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Part of one row of the gradient with respect to what lies in `logits`, but for `inner * outer`'s constant slope.

    gradient may be logits itself: each element is read before it is written, by the same program.
    """
    row = tl.program_id(0).to(tl.int64)
    base = logits + (row // rows_inner) * stride_outer + (row % rows_inner) * stride_inner
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row + tl.arange(0, 1)
    x = tl.load(base + columns.to(tl.int64) * stride_v, mask=columns < V, other=0.0).to(tl.float32)
    z = capped(x, inner, outer, HAS_SOFTCAP)[None, :]
    sum_d = tl.zeros((1,), dtype=tl.float32)
    own = tl.zeros((1, COLUMNS), dtype=tl.float32)
    for k in range(K):
        d = tl.load(d_logprobs + at * K + k)
        sum_d += d
        own += tl.where(columns[None, :] == tl.load(index + at * K + k)[:, None], d[:, None], 0.0)
    result = own + logit_gradient(z, tl.load(peaks + at), tl.load(log_totals + at), sum_d, sum_d, sum_d, False)
    if HAS_SOFTCAP:
        result *= damping(x, inner)[None, :]
    out = gradient + at[:, None] * stride_gm + columns[None, :]
    tl.store(out, result.to(gradient.dtype.element_ty), mask=(columns < V)[None, :])
