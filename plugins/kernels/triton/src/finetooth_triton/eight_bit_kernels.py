"""Kernels that round a tensor to 8-bit floating point with one scale. Imports Triton.

The first reads the tensor once and leaves maxima of its parts, the second reads them and the tensor, and writes.
Nothing else of the tensor's size is made.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,import-not-found,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

EXPONENT = tl.constexpr(0x7F800000)
"""Bits of a float32's exponent."""


@triton.jit
def largest_of(numbers):
    """The largest of a vector, NaN if one of them is: `tl.max` may pass over it."""
    unknown = tl.max((numbers != numbers).to(tl.int32), 0)
    return tl.where(unknown > 0, float("nan"), tl.max(numbers, 0))


@triton.jit(do_not_specialize=["SIZE"])
def largest_kernel(t, largest_p, SIZE, PART, COLUMNS: tl.constexpr):
    """The largest absolute number of PART numbers, float32."""
    part = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, COLUMNS)
    largest = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(0, PART, COLUMNS):
        at = part * PART + start + lanes
        numbers = tl.load(t + at, mask=at < SIZE, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(numbers), propagate_nan=tl.PropagateNan.ALL)
    tl.store(largest_p + part, largest_of(largest))


@triton.jit(do_not_specialize=["N", "D"])
def round_kernel(
    t, largest_p, scale, out, N, D, COUNT, GREATEST: tl.constexpr, LEAST: tl.constexpr, PUSH: tl.constexpr,
    TURNED: tl.constexpr, GIVEN: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of (N, D): t / scale, rounded; the scale takes the largest number to GREATEST, the greatest of the format.

    LEAST: the least normal number of the format. PUSH: 1.5 * 2^23 / 2^(bits of its mantissa): a number that is added to
    that many times its own power of two keeps the mantissa's bits and no more.
    GIVEN: the scale is read, else it is made of the maxima and written.
    TURNED: `out` is (D, N).
    """
    if GIVEN:
        divisor = tl.load(scale)
    else:
        parts = tl.arange(0, PARTS)
        largest = largest_of(tl.load(largest_p + parts, mask=parts < COUNT, other=0.0))
        divisor = tl.where(largest == 0.0, 1.0, tl.div_rn(largest, GREATEST))
        if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
            tl.store(scale, divisor)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    here = (rows < N) & (columns < D)
    numbers = tl.load(t + rows * D + columns, mask=here, other=0.0).to(tl.float32)
    numbers = tl.div_rn(numbers, divisor)
    numbers = tl.maximum(numbers, -GREATEST, propagate_nan=tl.PropagateNan.ALL)
    numbers = tl.minimum(numbers, GREATEST, propagate_nan=tl.PropagateNan.ALL)
    # to the nearest level here, so that the conversion has nothing to round, however a device or the interpreter does
    power = (numbers.to(tl.int32, bitcast=True) & EXPONENT).to(tl.float32, bitcast=True)
    middle = tl.maximum(power, LEAST) * PUSH
    numbers = ((numbers + middle) - middle).to(out.dtype.element_ty)
    if TURNED:
        tl.store(out + columns.to(tl.int64) * N + rows, numbers, mask=here)
    else:
        tl.store(out + rows * D + columns, numbers, mask=here)
