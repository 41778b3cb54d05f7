"""Kernels of a decoder layer's rows: norms, rotations, the gated activation, dropout. Imports Triton.

All compute in float32 and round what they write. A program takes a row, or a block of one, and nothing is summed across
programs but in a fixed order, so the numbers of a row do not depend on the others.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(0.7071067811865476)
SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
INVERSE_SQRT_2_PI = tl.constexpr(0.3989422804014327)
CUBIC = tl.constexpr(0.044715)
FIRST = tl.constexpr(0x85EBCA6B)
SECOND = tl.constexpr(0xC2B2AE35)


@triton.jit
def rms_norm_kernel(x, weight, y, inverse, D, eps, SAME: tl.constexpr, COLUMNS: tl.constexpr):
    """One row: y = weight x / sqrt(mean(x^2) + eps), and the inverse root.

    SAME: rows and weight have one dtype, to which the normalised row is rounded before the weight multiplies.
    """
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, COLUMNS)
    squares = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(0, D, COLUMNS):
        columns = start + lanes
        values = tl.load(x + row * D + columns, mask=columns < D, other=0.0).to(tl.float32)
        squares += values * values
    root = tl.rsqrt(tl.sum(squares, 0) / D + eps)
    tl.store(inverse + row, root)
    for start in range(0, D, COLUMNS):
        columns = start + lanes
        values = tl.load(x + row * D + columns, mask=columns < D, other=0.0).to(tl.float32)
        w = tl.load(weight + columns, mask=columns < D, other=0.0).to(tl.float32)
        normalised = values * root
        if SAME:
            normalised = normalised.to(y.dtype.element_ty).to(tl.float32)
        tl.store(y + row * D + columns, (normalised * w).to(y.dtype.element_ty), mask=columns < D)


@triton.jit
def rms_norm_backward_kernel(
    grad, x, weight, inverse, added, d_x, D, HAS_ADDED: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """One row: with n = x r and g = weight grad, r (g - n mean(g n)), plus `added`."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, COLUMNS)
    root = tl.load(inverse + row)
    products = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(0, D, COLUMNS):
        columns = start + lanes
        normalised = tl.load(x + row * D + columns, mask=columns < D, other=0.0).to(tl.float32) * root
        g = tl.load(grad + row * D + columns, mask=columns < D, other=0.0).to(tl.float32)
        w = tl.load(weight + columns, mask=columns < D, other=0.0).to(tl.float32)
        products += g * w * normalised
    mean = tl.sum(products, 0) / D
    for start in range(0, D, COLUMNS):
        columns = start + lanes
        normalised = tl.load(x + row * D + columns, mask=columns < D, other=0.0).to(tl.float32) * root
        g = tl.load(grad + row * D + columns, mask=columns < D, other=0.0).to(tl.float32)
        w = tl.load(weight + columns, mask=columns < D, other=0.0).to(tl.float32)
        result = root * (g * w - normalised * mean)
        if HAS_ADDED:
            result += tl.load(added + row * D + columns, mask=columns < D, other=0.0).to(tl.float32)
        tl.store(d_x + row * D + columns, result.to(d_x.dtype.element_ty), mask=columns < D)


@triton.jit(do_not_specialize=["N"])
def rms_norm_weight_backward_kernel(
    grad, x, inverse, partial, N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """ROWS rows of some columns: their sum of grad x r, float32."""
    block = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for i in range(0, ROWS):
        row = block * ROWS + i
        here = (columns < D) & (row < N)
        root = tl.load(inverse + row, mask=row < N, other=0.0)
        g = tl.load(grad + row * D + columns, mask=here, other=0.0).to(tl.float32)
        total += g * tl.load(x + row * D + columns, mask=here, other=0.0).to(tl.float32) * root
    tl.store(partial + block * D + columns, total, mask=columns < D)


@triton.jit
def activated(gate, ACTIVATION: tl.constexpr):
    """The activation, and its derivative."""
    if ACTIVATION == "silu":
        share = 1.0 / (1.0 + tl.exp(-gate))
        value = gate * share
        slope = share * (1.0 + gate * (1.0 - share))
    elif ACTIVATION == "gelu":
        share = 0.5 * (1.0 + tl.erf(gate * SQRT_HALF))
        value = gate * share
        slope = share + gate * tl.exp(-0.5 * gate * gate) * INVERSE_SQRT_2_PI
    else:
        inner = SQRT_2_OVER_PI * (gate + CUBIC * gate * gate * gate)
        bent = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * inner))  # tanh
        value = 0.5 * gate * (1.0 + bent)
        slope = 0.5 * (1.0 + bent) + 0.5 * gate * (1.0 - bent * bent) * SQRT_2_OVER_PI * (
            1.0 + 3.0 * CUBIC * gate * gate
        )
    return value, slope


@triton.jit
def gated_kernel(gate_up, y, F, ACTIVATION: tl.constexpr, COLUMNS: tl.constexpr):
    """Part of one row: act(gate) up."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    gate = tl.load(gate_up + 2 * row * F + columns, mask=columns < F, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (2 * row + 1) * F + columns, mask=columns < F, other=0.0).to(tl.float32)
    value, _ = activated(gate, ACTIVATION)
    tl.store(y + row * F + columns, (value * up).to(y.dtype.element_ty), mask=columns < F)


@triton.jit
def gated_backward_kernel(grad, gate_up, d_gate_up, F, ACTIVATION: tl.constexpr, COLUMNS: tl.constexpr):
    """Part of one row: the gradients of gate and up."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here, there = 2 * row * F + columns, (2 * row + 1) * F + columns
    gate = tl.load(gate_up + here, mask=columns < F, other=0.0).to(tl.float32)
    up = tl.load(gate_up + there, mask=columns < F, other=0.0).to(tl.float32)
    g = tl.load(grad + row * F + columns, mask=columns < F, other=0.0).to(tl.float32)
    value, slope = activated(gate, ACTIVATION)
    tl.store(d_gate_up + here, (g * up * slope).to(d_gate_up.dtype.element_ty), mask=columns < F)
    tl.store(d_gate_up + there, (g * value).to(d_gate_up.dtype.element_ty), mask=columns < F)


@triton.jit
def rotate_kernel(
    x, cos, sin, out, H, D, half, heads, sign,
    HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one row: pairs (i, i + half) turned where the head is below `heads`, all else copied."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, HALF)
    base = (row * H + head[:, None]) * D
    here = (head[:, None] < H) & (pair[None, :] < half)
    c = tl.load(cos + row * half + pair, mask=pair < half, other=1.0)[None, :]
    s = sign * tl.load(sin + row * half + pair, mask=pair < half, other=0.0)[None, :]
    first = tl.load(x + base + pair[None, :], mask=here, other=0.0).to(tl.float32)
    second = tl.load(x + base + half + pair[None, :], mask=here, other=0.0).to(tl.float32)
    turned = head[:, None] < heads
    tl.store(
        out + base + pair[None, :], tl.where(turned, first * c - second * s, first).to(out.dtype.element_ty), mask=here
    )
    tl.store(
        out + base + half + pair[None, :],
        tl.where(turned, second * c + first * s, second).to(out.dtype.element_ty),
        mask=here,
    )
    if REST:
        rest = 2 * half + tl.arange(0, REST)
        behind = (head[:, None] < H) & (rest[None, :] < D)
        tl.store(out + base + rest[None, :], tl.load(x + base + rest[None, :], mask=behind, other=0.0), mask=behind)


@triton.jit
def gated_norm_kernel(
    x, gate, weight, y, inverse, N, D, eps, SAME: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """ROWS rows: weight silu(gate) x / sqrt(mean(x^2) + eps), and the inverse roots. SAME: as in `rms_norm_kernel`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    at = row[:, None] * D + columns[None, :]
    here = (row[:, None] < N) & (columns[None, :] < D)
    values = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(values * values, 1) / D + eps)
    tl.store(inverse + row, root, mask=row < N)
    values = _weighed(values * root[:, None], weight, columns, D, y, SAME)
    share, _ = activated(tl.load(gate + at, mask=here, other=0.0).to(tl.float32), "silu")
    tl.store(y + at, (values * share).to(y.dtype.element_ty), mask=here)


@triton.jit
def gated_norm_backward_kernel(
    grad, x, gate, weight, inverse, d_x, d_gate, partial, N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """ROWS rows: with n = x r, s = silu(gate) and g = grad weight s: r (g - n mean(g n)), grad weight n s', and their
    sum of grad n s."""
    program = tl.program_id(0).to(tl.int64)
    row = program * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    at = row[:, None] * D + columns[None, :]
    here = (row[:, None] < N) & (columns[None, :] < D)
    root = tl.load(inverse + row, mask=row < N, other=0.0)[:, None]
    normalised = tl.load(x + at, mask=here, other=0.0).to(tl.float32) * root
    incoming = tl.load(grad + at, mask=here, other=0.0).to(tl.float32)
    w = tl.load(weight + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
    share, slope = activated(tl.load(gate + at, mask=here, other=0.0).to(tl.float32), "silu")
    g = incoming * w * share
    mean = (tl.sum(g * normalised, 1) / D)[:, None]
    tl.store(d_x + at, (root * (g - normalised * mean)).to(d_x.dtype.element_ty), mask=here)
    tl.store(d_gate + at, (incoming * w * normalised * slope).to(d_gate.dtype.element_ty), mask=here)
    tl.store(partial + program * D + columns, tl.sum(incoming * normalised * share, 0), mask=columns < D)


@triton.jit
def _heads_of(program, H, K, HEADS: tl.constexpr):
    """Which heads of H queries, K keys and K values a program has, those that there are, and whether they are queries
    and values: no program has heads of two kinds."""
    query_tiles, key_tiles = tl.cdiv(H, HEADS), tl.cdiv(K, HEADS)
    is_query = program < query_tiles
    is_value = program >= query_tiles + key_tiles
    first = tl.where(is_query, 0, tl.where(is_value, H + K, H))
    tile = program - tl.where(is_query, 0, tl.where(is_value, query_tiles + key_tiles, query_tiles))
    head = first + tile * HEADS + tl.arange(0, HEADS)
    return head, head < first + tl.where(is_query, H, K), is_query, is_value


@triton.jit
def norm_rotary_kernel(
    x, query_weight, key_weight, cos, sin, out, inverse, H, K, D, half, eps,
    SAME: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one position: queries and keys normalised and turned, with their inverse roots; values copied.

    SAME: as in `rms_norm_kernel`.
    """
    row = tl.program_id(0).to(tl.int64)
    head, there, is_query, is_value = _heads_of(tl.program_id(1), H, K, HEADS)
    weight = query_weight if is_query else key_weight
    pair = tl.arange(0, HALF)
    base = (row * (H + 2 * K) + head[:, None]) * D
    here = there[:, None] & (pair[None, :] < half)
    first = tl.load(x + base + pair[None, :], mask=here, other=0.0).to(tl.float32)
    second = tl.load(x + base + half + pair[None, :], mask=here, other=0.0).to(tl.float32)
    squares = tl.sum(first * first + second * second, 1)
    if REST:
        rest = 2 * half + tl.arange(0, REST)
        behind = there[:, None] & (rest[None, :] < D)
        third = tl.load(x + base + rest[None, :], mask=behind, other=0.0).to(tl.float32)
        squares += tl.sum(third * third, 1)
    if is_value:
        tl.store(out + base + pair[None, :], first.to(out.dtype.element_ty), mask=here)
        tl.store(out + base + half + pair[None, :], second.to(out.dtype.element_ty), mask=here)
        if REST:
            tl.store(out + base + rest[None, :], third.to(out.dtype.element_ty), mask=behind)
    else:
        root = tl.rsqrt(squares / D + eps)
        tl.store(inverse + row * (H + K) + head, root, mask=there)
        first = _weighed(first * root[:, None], weight, pair, half, out, SAME)
        second = _weighed(second * root[:, None], weight + half, pair, half, out, SAME)
        c = tl.load(cos + row * half + pair, mask=pair < half, other=1.0)[None, :]
        s = tl.load(sin + row * half + pair, mask=pair < half, other=0.0)[None, :]
        tl.store(out + base + pair[None, :], (first * c - second * s).to(out.dtype.element_ty), mask=here)
        tl.store(out + base + half + pair[None, :], (second * c + first * s).to(out.dtype.element_ty), mask=here)
        if REST:
            third = _weighed(third * root[:, None], weight, rest, D, out, SAME)
            tl.store(out + base + rest[None, :], third.to(out.dtype.element_ty), mask=behind)


@triton.jit
def _weighed(normalised, weight, columns, D, out, SAME: tl.constexpr):
    """Normalised numbers times their weights, rounded as a norm of its own would give them."""
    w = tl.load(weight + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
    if SAME:
        normalised = normalised.to(out.dtype.element_ty).to(tl.float32)
    return (normalised * w).to(out.dtype.element_ty).to(tl.float32)


@triton.jit
def norm_rotary_backward_kernel(
    grad, x, query_weight, key_weight, cos, sin, inverse, d_x, partial, H, K, D, half,
    WEIGHTS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one position: the gradient of `x`; with WEIGHTS also their part of the weights' gradients."""
    row = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    head, there, is_query, is_value = _heads_of(program, H, K, HEADS)
    weight = query_weight if is_query else key_weight
    pair = tl.arange(0, HALF)
    base = (row * (H + 2 * K) + head[:, None]) * D
    here = there[:, None] & (pair[None, :] < half)
    g_first = tl.load(grad + base + pair[None, :], mask=here, other=0.0).to(tl.float32)
    g_second = tl.load(grad + base + half + pair[None, :], mask=here, other=0.0).to(tl.float32)
    if REST:
        rest = 2 * half + tl.arange(0, REST)
        behind = there[:, None] & (rest[None, :] < D)
        g_third = tl.load(grad + base + rest[None, :], mask=behind, other=0.0).to(tl.float32)
    if is_value:
        tl.store(d_x + base + pair[None, :], g_first.to(d_x.dtype.element_ty), mask=here)
        tl.store(d_x + base + half + pair[None, :], g_second.to(d_x.dtype.element_ty), mask=here)
        if REST:
            tl.store(d_x + base + rest[None, :], g_third.to(d_x.dtype.element_ty), mask=behind)
    else:
        root = tl.load(inverse + row * (H + K) + head, mask=there, other=0.0)[:, None]
        c = tl.load(cos + row * half + pair, mask=pair < half, other=1.0)[None, :]
        s = tl.load(sin + row * half + pair, mask=pair < half, other=0.0)[None, :]
        u_first, u_second = g_first * c + g_second * s, g_second * c - g_first * s
        n_first = tl.load(x + base + pair[None, :], mask=here, other=0.0).to(tl.float32) * root
        n_second = tl.load(x + base + half + pair[None, :], mask=here, other=0.0).to(tl.float32) * root
        w_first = tl.load(weight + pair, mask=pair < half, other=0.0).to(tl.float32)[None, :]
        w_second = tl.load(weight + half + pair, mask=pair < half, other=0.0).to(tl.float32)[None, :]
        products = tl.sum(u_first * w_first * n_first + u_second * w_second * n_second, 1)
        if REST:
            n_third = tl.load(x + base + rest[None, :], mask=behind, other=0.0).to(tl.float32) * root
            w_third = tl.load(weight + rest, mask=rest < D, other=0.0).to(tl.float32)[None, :]
            products += tl.sum(g_third * w_third * n_third, 1)
        mean = (products / D)[:, None]
        d_first, d_second = root * (u_first * w_first - n_first * mean), root * (u_second * w_second - n_second * mean)
        tl.store(d_x + base + pair[None, :], d_first.to(d_x.dtype.element_ty), mask=here)
        tl.store(d_x + base + half + pair[None, :], d_second.to(d_x.dtype.element_ty), mask=here)
        if REST:
            d_third = root * (g_third * w_third - n_third * mean)
            tl.store(d_x + base + rest[None, :], d_third.to(d_x.dtype.element_ty), mask=behind)
        if WEIGHTS:
            part = partial + (row * (tl.cdiv(H, HEADS) + tl.cdiv(K, HEADS)) + program) * D
            tl.store(part + pair, tl.sum(u_first * n_first, 0), mask=pair < half)
            tl.store(part + half + pair, tl.sum(u_second * n_second, 0), mask=pair < half)
            if REST:
                tl.store(part + rest, tl.sum(g_third * n_third, 0), mask=rest < D)


@triton.jit
def stays(words, threshold):
    """Whether numbers stay, from the words of their row and column, joined; see `finetooth_kernels.dropout`."""
    words = words.to(tl.uint32, bitcast=True)
    words = (words ^ (words >> 16)) * FIRST
    words = (words ^ (words >> 13)) * SECOND
    return (words ^ (words >> 16)).to(tl.int32, bitcast=True) >= threshold


@triton.jit
def dropout_kernel(x, rows, columns_words, y, D, threshold, scale, COLUMNS: tl.constexpr):
    """Part of one row: what the words of row and column leave, times `scale`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = columns < D
    words = tl.load(rows + row) ^ tl.load(columns_words + columns, mask=here, other=0)
    values = tl.load(x + row * D + columns, mask=here, other=0.0).to(tl.float32)
    left = tl.where(stays(words, threshold), values * scale, 0.0)
    tl.store(y + row * D + columns, left.to(y.dtype.element_ty), mask=here)
