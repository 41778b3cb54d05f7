"""Weights as ggml's K blocks of 256: how numbers become the bytes of `Q4_K` and `Q6_K`.

Layouts: ggml's `ggml-common.h`, `block_q4_K` and `block_q6_K`. A block has parts, each with a scale of few bits that is
a multiple of the block's own in fp16. The gguf package reads both and makes neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from finetooth_modelfiles.gguf.package import GGMLQuantizationType

Floats = npt.NDArray[np.floating[Any]]
Bytes = npt.NDArray[np.uint8]

BLOCK = 256
PIECE = 1 << 12
"""Number of blocks computed at once; temporary memory is several times their size."""
STRETCHES = (1.0, 0.96, 0.92, 0.88, 1.04)
"""Shares of a part's range that its levels are tried over. Less than all of it is nearer where few weights lie at the
ends."""


def encode(rows: Floats, kind: GGMLQuantizationType) -> Bytes:
    """Rows as blocks.

    Args:
        rows: (..., columns), whole blocks of columns.
        kind: a key of `ENCODERS`.

    Returns:
        (..., bytes of a row).
    """
    blocks = np.ascontiguousarray(rows, np.float32).reshape(-1, BLOCK)
    made = [ENCODERS[kind](blocks[start : start + PIECE]) for start in range(0, len(blocks), PIECE)]
    return np.concatenate(made).reshape(*rows.shape[:-1], -1)


def q4_k(blocks: Floats) -> Bytes:
    """w = d s q - e m with q in 0..15 and, of each of 8 parts, s and m in 0..63; d and e are fp16.

    Args:
        blocks: (N, 256).

    Returns:
        (N, 144).
    """
    parts = blocks.reshape(-1, 8, 32)
    scales, minima = _fitted(parts)
    d, e = _half(scales.max(1) / 63), _half(minima.max(1) / 63)
    s = _multiples(scales, d, 63)
    m = _multiples(minima, e, 63)
    step, least = (d[:, None] * s)[..., None], (e[:, None] * m)[..., None]
    codes = _divided(parts + least, step).round().clip(0, 15).astype(np.uint8)
    pairs = codes.reshape(-1, 4, 2, 32)
    return np.concatenate(
        (_bytes(d), _bytes(e), _six_bits(s.astype(np.uint8), m.astype(np.uint8)),
         (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)), axis=1,
    )  # fmt: skip


def q6_k(blocks: Floats) -> Bytes:
    """w = d s q with q in -32..31 and, of each of 16 parts, s in -128..127; d is fp16.

    Args:
        blocks: (N, 256).

    Returns:
        (N, 210).
    """
    parts = blocks.reshape(-1, 16, 16)
    at = np.abs(parts).argmax(-1, keepdims=True)
    scales = np.take_along_axis(parts, at, -1)[..., 0] / -32  # the weight of greatest magnitude is -32
    codes = _divided(parts, scales[..., None]).round().clip(-32, 31)
    # of these codes, the scale that is nearest to the weights
    scales = np.where((codes**2).sum(-1) > 0, _divided((parts * codes).sum(-1), (codes**2).sum(-1)), scales)
    greatest = np.take_along_axis(scales, np.abs(scales).argmax(1, keepdims=True), 1)[:, 0]
    d = _half(greatest / -128)
    s = _divided(scales, d[:, None]).round().clip(-128, 127)
    codes = (_divided(parts, (d[:, None] * s)[..., None]).round().clip(-32, 31) + 32).astype(np.uint8)
    halves = codes.reshape(-1, 2, 4, 32)
    low, high = halves & 15, halves >> 4
    pairs = low.reshape(-1, 2, 2, 64)
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.concatenate(
        ((pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128), upper.reshape(-1, 64),
         s.astype(np.int8).view(np.uint8), _bytes(d)), axis=1,
    )  # fmt: skip


ENCODERS: Mapping[GGMLQuantizationType, Callable[[Floats], Bytes]] = {
    GGMLQuantizationType.Q4_K: q4_k,
    GGMLQuantizationType.Q6_K: q6_k,
}
"""From (N, 256) numbers to (N, bytes of a block)."""


def _fitted(parts: Floats) -> tuple[Floats, Floats]:
    """Scale and minimum (what is taken off, not negative) of each part, so that scale * code - minimum is near: of some
    stretches of the range, each with the line of least squares through its codes, the nearest.

    Args:
        parts: (N, P, 32).

    Returns:
        (N, P) each.
    """
    least = np.minimum(parts.min(-1), 0)
    span = np.maximum(parts.max(-1), 0) - least
    best = np.full(span.shape, np.inf, np.float32)
    scales, minima = span / 15, -least
    for stretch in STRETCHES:
        step = span * np.float32(stretch) / 15
        codes = _divided(parts - least[..., None], step[..., None]).round().clip(0, 15)
        for scale, minimum in ((step, -least), _line(parts, codes)):
            made = _divided(parts + minimum[..., None], scale[..., None]).round().clip(0, 15)
            off = ((made * scale[..., None] - minimum[..., None] - parts) ** 2).sum(-1)
            nearer = (off < best) & (scale > 0)
            best = np.where(nearer, off, best)
            scales, minima = np.where(nearer, scale, scales), np.where(nearer, minimum, minima)
    return scales.astype(np.float32), minima.astype(np.float32)


def _line(parts: Floats, codes: Floats) -> tuple[Floats, Floats]:
    """Scale and minimum of least squares for given codes; a minimum that would be negative is 0."""
    count = np.float32(parts.shape[-1])
    c, w, cc, cw = codes.sum(-1), parts.sum(-1), (codes**2).sum(-1), (codes * parts).sum(-1)
    scale = _divided(count * cw - c * w, count * cc - c * c)
    minimum = (scale * c - w) / count
    through_zero = minimum < 0
    return np.where(through_zero, _divided(cw, cc), scale), np.where(through_zero, 0, minimum)


def _divided(a: Floats, b: Floats) -> Floats:
    """a / b, and 0 where b is 0."""
    a, b = np.broadcast_arrays(a, b)
    quotient: Floats = np.divide(a, b, out=np.zeros(a.shape, np.float32), where=b != 0)
    return quotient


def _half(values: Floats) -> Floats:
    """As fp16 has them."""
    rounded: Floats = values.astype(np.float16).astype(np.float32)
    return rounded


def _multiples(values: Floats, unit: Floats, most: int) -> Floats:
    """(N, P) values in whole units, (N,)."""
    multiples: Floats = _divided(values, unit[:, None]).round().clip(0, most)
    return multiples


def _bytes(half: Floats) -> Bytes:
    """(N, 2) of (N,) numbers that fp16 has."""
    return half.astype("<f2").view(np.uint8).reshape(-1, 2)


def _six_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """(N, 12) of (N, 8) scales and minima: of the first four parts the low bits of a byte each, the last four cut
    into four bits of their own bytes and the two highest of the first ones'."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = minima[:, :4] | minima[:, 4:] >> 4 << 6
    third = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
    return np.concatenate((first, second, third), axis=1)
