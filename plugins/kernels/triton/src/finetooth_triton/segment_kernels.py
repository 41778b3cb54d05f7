"""Kernels of attention over a stream of segments, accumulated in float32. Imports Triton.

See `finetooth_triton.segments`: row i sees row j where j <= i < until[j], and in a window where place[i] - place[j] is
less than it. Blocks of rows walk through runs of blocks that they may see, or that may see them.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

from finetooth_triton.softmax import NEGATIVE_INFINITY, capped, damping

BELOW_ALL = tl.constexpr(-1e30)
"""The peak of a row that has seen nothing: finite, since the difference of two infinities is NaN."""


@triton.jit
def rows_of(base, first, N, stride, SIZE: tl.constexpr, WHOLE: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr,
            NUMBERS: tl.constexpr):  # fmt: skip
    """Numbers of ROWS rows of a head, 0 behind the last one. WIDEN: see `linear_tile`.

    Rows behind the last repeat it: nothing sees them, and they take no masks, of which a thread holds few.
    """
    rows, numbers = tl.minimum(tl.arange(0, ROWS), N - 1 - first), tl.arange(0, NUMBERS)
    place = base + tl.cast(first, tl.int64) * stride + rows[:, None] * stride + numbers[None, :]
    x = tl.load(place) if WHOLE else tl.load(place, mask=(numbers < SIZE)[None, :], other=0.0)
    if WIDEN:
        x = x.to(tl.float32)
    return x


@triton.jit
def write_rows(base, first, N, stride, x, SIZE: tl.constexpr, ROWS: tl.constexpr, NUMBERS: tl.constexpr):
    """Where `rows_of` reads, up to the last row."""
    rows, numbers = tl.arange(0, ROWS), tl.arange(0, NUMBERS)
    place = base + tl.cast(first, tl.int64) * stride + rows[:, None] * stride + numbers[None, :]
    inside = (rows < N - first)[:, None] & (numbers < SIZE)[None, :]
    tl.store(place, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def seen_scores(products, rows, places, columns, places_seen, until, inner, outer, window, WINDOWED: tl.constexpr,
                CAPPED: tl.constexpr):  # fmt: skip
    """Scores of products, -inf where a row does not see a column; the two may stand in either direction."""
    seen = (columns <= rows) & (rows < until)
    if WINDOWED:
        seen = seen & (places - places_seen < window)
    return tl.where(seen, capped(products, inner, outer, CAPPED), NEGATIVE_INFINITY)


@triton.jit(do_not_specialize=["N", "window"])
def segment_attention_kernel(
    qkv, places, untils, offsets, runs, sinks, out, lse, inner, outer, window, N, stride_n, stride_h,
    HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, WHOLE: tl.constexpr, WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr, SUNK: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """A block of rows of one head: what it attends to, (N, H, D), and its log-sum-exp, (H, N)."""
    block, head = tl.program_id(0), tl.program_id(1)
    first = block * ROWS
    rows = first + tl.arange(0, ROWS)
    own = tl.load(places + rows)
    q = rows_of(qkv + head * stride_h, first, N, stride_n, SIZE, WHOLE, WIDEN, ROWS, NUMBERS)
    keys = qkv + (HEADS + head // GROUP) * stride_h
    values = keys + (HEADS // GROUP) * stride_h
    if SUNK:
        peak = tl.zeros((ROWS,), tl.float32) + tl.load(sinks + head).to(tl.float32)
        total = tl.full((ROWS,), 1.0, tl.float32)
    else:
        peak = tl.full((ROWS,), BELOW_ALL, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((ROWS, NUMBERS), tl.float32)
    for run in range(tl.load(offsets + block), tl.load(offsets + block + 1)):
        for at in range(tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)):
            start = at * COLUMNS
            columns = start + tl.arange(0, COLUMNS)
            k = rows_of(keys, start, N, stride_n, SIZE, WHOLE, WIDEN, COLUMNS, NUMBERS)
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            scores = seen_scores(
                products, rows[:, None], own[:, None], columns[None, :], tl.load(places + columns)[None, :],
                tl.load(untils + columns)[None, :], inner, outer, window, WINDOWED, CAPPED,
            )  # fmt: skip
            higher = tl.maximum(peak, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            shrunk = tl.exp(peak - higher)
            total = total * shrunk + tl.sum(weights, 1)
            v = rows_of(values, start, N, stride_n, SIZE, WHOLE, WIDEN, COLUMNS, NUMBERS)
            weights = weights.to(qkv.dtype.element_ty).to(v.dtype)
            result = tl.dot(weights, v, result * shrunk[:, None], input_precision=PRECISION)
            peak = higher
    write_rows(out + head * SIZE, first, N, HEADS * SIZE, result / total[:, None], SIZE, ROWS, NUMBERS)
    tl.store(lse + tl.cast(head, tl.int64) * N + rows, peak + tl.log(total), mask=rows < N)


@triton.jit(do_not_specialize=["N", "window"])
def segment_queries_backward_kernel(
    qkv, places, untils, offsets, runs, out, d_out, lse, delta, d_qkv, scale, inner, outer, window, N, stride_n,
    stride_h, HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, WHOLE: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """A block of rows of one head: the gradient of its queries, and delta, (H, N), which the other kernel reads."""
    block, head = tl.program_id(0), tl.program_id(1)
    first = block * ROWS
    rows = first + tl.arange(0, ROWS)
    own = tl.load(places + rows)
    q = rows_of(qkv + head * stride_h, first, N, stride_n, SIZE, WHOLE, WIDEN, ROWS, NUMBERS)
    keys = qkv + (HEADS + head // GROUP) * stride_h
    values = keys + (HEADS // GROUP) * stride_h
    grad = rows_of(d_out + head * SIZE, first, N, HEADS * SIZE, SIZE, WHOLE, WIDEN, ROWS, NUMBERS)
    attended = rows_of(out + head * SIZE, first, N, HEADS * SIZE, SIZE, WHOLE, WIDEN, ROWS, NUMBERS)
    of_rows = tl.cast(head, tl.int64) * N + rows
    shift = tl.sum(grad.to(tl.float32) * attended.to(tl.float32), 1)
    tl.store(delta + of_rows, shift, mask=rows < N)
    log_total = tl.load(lse + of_rows, mask=rows < N, other=0.0)
    d_q = tl.zeros((ROWS, NUMBERS), tl.float32)
    for run in range(tl.load(offsets + block), tl.load(offsets + block + 1)):
        for at in range(tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)):
            start = at * COLUMNS
            columns = start + tl.arange(0, COLUMNS)
            k = rows_of(keys, start, N, stride_n, SIZE, WHOLE, WIDEN, COLUMNS, NUMBERS)
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            scores = seen_scores(
                products, rows[:, None], own[:, None], columns[None, :], tl.load(places + columns)[None, :],
                tl.load(untils + columns)[None, :], inner, outer, window, WINDOWED, CAPPED,
            )  # fmt: skip
            weights = tl.exp(scores - log_total[:, None])
            v = rows_of(values, start, N, stride_n, SIZE, WHOLE, WIDEN, COLUMNS, NUMBERS)
            d_scores = weights * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - shift[:, None])
            if CAPPED:
                d_scores = d_scores * damping(products, inner)
            d_q = tl.dot(d_scores.to(qkv.dtype.element_ty).to(k.dtype), k, d_q, input_precision=PRECISION)
    stride = (HEADS + 2 * (HEADS // GROUP)) * SIZE
    write_rows(d_qkv + head * SIZE, first, N, stride, d_q * scale, SIZE, ROWS, NUMBERS)


@triton.jit(do_not_specialize=["N", "window"])
def segment_keys_backward_kernel(
    qkv, places, untils, offsets, runs, d_out, lse, delta, d_qkv, scale, inner, outer, window, N, stride_n, stride_h,
    HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, WHOLE: tl.constexpr, WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    NUMBERS: tl.constexpr,
):  # fmt: skip
    """A block of columns of one key-value head: the gradients of its keys and values, from all rows that see them and
    all heads of the group, one after the other, so that sums repeat bit for bit."""
    block, kv_head = tl.program_id(0), tl.program_id(1)
    first = block * COLUMNS
    columns = first + tl.arange(0, COLUMNS)
    own, until = tl.load(places + columns), tl.load(untils + columns)
    keys = qkv + (HEADS + kv_head) * stride_h
    k = rows_of(keys, first, N, stride_n, SIZE, WHOLE, WIDEN, COLUMNS, NUMBERS)
    v = rows_of(keys + (HEADS // GROUP) * stride_h, first, N, stride_n, SIZE, WHOLE, WIDEN, COLUMNS, NUMBERS)
    d_k = tl.zeros((COLUMNS, NUMBERS), tl.float32)
    d_v = tl.zeros((COLUMNS, NUMBERS), tl.float32)
    for head in range(kv_head * GROUP, (kv_head + 1) * GROUP):
        for run in range(tl.load(offsets + block), tl.load(offsets + block + 1)):
            for at in range(tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)):
                start = at * ROWS
                rows = start + tl.arange(0, ROWS)
                of_rows = tl.cast(head, tl.int64) * N + rows
                q = rows_of(qkv + head * stride_h, start, N, stride_n, SIZE, WHOLE, WIDEN, ROWS, NUMBERS)
                products = tl.dot(k, tl.trans(q), input_precision=PRECISION)
                scores = seen_scores(
                    products, rows[None, :], tl.load(places + rows)[None, :], columns[:, None], own[:, None],
                    until[:, None], inner, outer, window, WINDOWED, CAPPED,
                )  # fmt: skip
                weights = tl.exp(scores - tl.load(lse + of_rows, mask=rows < N, other=0.0)[None, :])
                grad = rows_of(d_out + head * SIZE, start, N, HEADS * SIZE, SIZE, WHOLE, WIDEN, ROWS, NUMBERS)
                coarse = weights.to(qkv.dtype.element_ty).to(grad.dtype)
                d_v = tl.dot(coarse, grad, d_v, input_precision=PRECISION)
                shift = tl.load(delta + of_rows, mask=rows < N, other=0.0)
                d_scores = weights * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - shift[None, :])
                if CAPPED:
                    d_scores = d_scores * damping(products, inner)
                d_k = tl.dot(d_scores.to(qkv.dtype.element_ty).to(q.dtype), q, d_k, input_precision=PRECISION)
    stride = (HEADS + 2 * (HEADS // GROUP)) * SIZE
    d_keys = d_qkv + (HEADS + kv_head) * SIZE
    write_rows(d_keys, first, N, stride, d_k * scale, SIZE, COLUMNS, NUMBERS)
    write_rows(d_keys + (HEADS // GROUP) * SIZE, first, N, stride, d_v, SIZE, COLUMNS, NUMBERS)
