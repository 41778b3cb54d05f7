"""Kernel of attention of one query a row to a cache, accumulated in float32. Imports Triton.

See `finetooth_triton.cached_attention`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns_seen(
    q, peak, total, result, keys, values, first, last, scale, SIZE: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, COLUMNS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """The softmax so far, with the columns from `first` to `last`: the largest score, the sum of weights and the sum
    of weighted values of each query.

    A weight is multiplied in two parts of the cache's type, so that it counts in more than that one's precision.
    """
    numbers, columns = tl.arange(0, NUMBERS), tl.arange(0, COLUMNS)
    place = columns[:, None] * SIZE + numbers[None, :]
    for start in range(first, last, COLUMNS):
        there = columns < last - start
        # 64 bits only in what all places of a tile share: an offset inside it takes one register
        before = tl.cast(start, tl.int64) * SIZE
        inside = there[:, None] if WHOLE else there[:, None] & (numbers < SIZE)[None, :]
        k = tl.load(keys + before + place, mask=inside, other=0.0)
        v = tl.load(values + before + place, mask=inside, other=0.0)
        dtype = v.dtype
        if WIDEN:  # see `linear_tile`
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where(there[None, :], scores, -float("inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrunk = tl.exp(peak - higher)
        total = total * shrunk + tl.sum(weights, 1)
        coarse = weights.to(dtype)
        result = tl.dot(coarse.to(v.dtype), v, result * shrunk[:, None], input_precision=PRECISION)
        if dtype != tl.float32:
            fine = (weights - coarse.to(tl.float32)).to(dtype)
            result = tl.dot(fine.to(v.dtype), v, result, input_precision=PRECISION)
        peak = higher
    return peak, total, result


@triton.jit
def cached_attention_kernel(
    qkv, own, above, starts, columns, out, scale, kv_heads, samples, width,
    stride_h, stride_r, stride_k, stride_ah, stride_ap, stride_ak,
    SHARED: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, QUERIES: tl.constexpr, COLUMNS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """The queries of one key-value head of one row: writes that head's newest key and value into the last column that
    is in use, and looks at it, at the columns before it, and with SHARED at those of the row's prompt."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    prompt = row // samples
    numbers = tl.arange(0, NUMBERS)
    queries = tl.arange(0, QUERIES)
    whole = numbers < SIZE
    of_row = qkv + row * (GROUP + 2) * kv_heads * SIZE
    heads = kv_head * GROUP + queries
    asked = (queries < GROUP)[:, None] & whole[None, :]
    q = tl.load(of_row + heads[:, None] * SIZE + numbers[None, :], mask=asked, other=0.0)
    key = tl.load(of_row + (GROUP * kv_heads + kv_head) * SIZE + numbers, mask=whole, other=0.0)
    value = tl.load(of_row + ((GROUP + 1) * kv_heads + kv_head) * SIZE + numbers, mask=whole, other=0.0)
    last = tl.load(columns).to(tl.int32) - 1
    first = tl.load(starts + prompt).to(tl.int32)
    peak = tl.sum(q.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scale
    total = peak * 0.0 + 1.0
    result = total[:, None] * value.to(tl.float32)[None, :]
    if WIDEN:
        q = q.to(tl.float32)
    if SHARED:
        of_prompt = above + prompt * stride_ap + kv_head.to(tl.int64) * stride_ak
        peak, total, result = columns_seen(
            q, peak, total, result, of_prompt, of_prompt + stride_ah, first, width, scale, SIZE, WHOLE, PRECISION,
            WIDEN, COLUMNS, NUMBERS,
        )  # fmt: skip
        first = 0
    keys = own + row * stride_r + kv_head.to(tl.int64) * stride_k
    peak, total, result = columns_seen(
        q, peak, total, result, keys, keys + stride_h, first, last, scale, SIZE, WHOLE, PRECISION, WIDEN, COLUMNS,
        NUMBERS,
    )  # fmt: skip
    newest = last.to(tl.int64) * SIZE + numbers
    tl.store(keys + newest, key, mask=whole)
    tl.store(keys + stride_h + newest, value, mask=whole)
    place = out + (row * kv_heads * GROUP + heads[:, None]) * SIZE + numbers[None, :]
    tl.store(place, (result / total[:, None]).to(out.dtype.element_ty), mask=asked)
