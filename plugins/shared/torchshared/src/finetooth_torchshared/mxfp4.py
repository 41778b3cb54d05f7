"""MXFP4 of the OCP Microscaling Formats (MX) Specification, version 1.0, sections 5.3 and 6.3: 32 numbers of 4 bits,
E2M1, that share a power of two, E8M0."""

from __future__ import annotations

import torch
from torch import Tensor

from finetooth_torchshared.quantised import RowsApart

BLOCK = 32
"""Numbers that share a scale."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of a 4-bit float with two bits of exponent and one of mantissa, by their codes; bit 3 is the sign."""
_BIAS, _LARGEST_EXPONENT, _MOST = 127, 2, 254
"""The bias of E8M0, the exponent of E2M1's largest power of two, and E8M0's largest code that is a number."""


def pairs(codes: Tensor) -> Tensor:
    """Codes 0..15, an even number of them in the last dimension, two to a byte, the first in the lower half."""
    codes = codes.to(torch.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4


def singles(pairs: Tensor) -> Tensor:
    """The inverse of `pairs`."""
    return torch.stack((pairs & 15, pairs >> 4), -1).flatten(-2)


def encoded(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Elements and scales. The power of two is of the exponent of the largest magnitude less E2M1's own; what would be
    more than 6 times that becomes 6 times that. Rounding is to the nearest, of two equally near to the even code.

    Args:
        blocks: (..., 32) fp32.

    Returns:
        (..., 16) uint8, two elements to a byte, and (..., 1) uint8 of E8M0.
    """
    largest = blocks.abs().amax(-1, keepdim=True)
    exponents = torch.frexp(largest).exponent - 1 - _LARGEST_EXPONENT
    exponents = torch.where(largest > 0, exponents + _BIAS, 0).clamp(0, _MOST).to(torch.uint8)
    scaled = blocks.abs() / power(exponents)
    levels = torch.tensor(E2M1, device=blocks.device)
    # how many of the bounds between levels are passed; on a bound it is the even of the two codes
    bounds, below = (levels[1:] + levels[:-1]) / 2, torch.zeros_like(scaled)
    for lower, bound in enumerate(bounds.tolist()):
        below += (scaled > bound) if lower % 2 == 0 else (scaled >= bound)
    codes = below.to(torch.uint8) | torch.signbit(blocks).to(torch.uint8) << 3
    return pairs(codes), exponents


def decoded(codes: Tensor, exponents: Tensor) -> Tensor:
    """The inverse of `encoded`: (..., 32) fp32."""
    table = torch.tensor((*E2M1, *(-level for level in E2M1)), device=codes.device)
    return table[singles(codes).int()] * power(exponents)


def power(exponents: Tensor) -> Tensor:
    """2^(e - 127) of E8M0 codes, exactly, by the bits of an fp32: 2^-127 is a subnormal one."""
    bits = exponents.int()
    return torch.where(bits == 0, torch.full_like(bits, 1 << 22), bits << 23).view(torch.float32)


class PackedMxfp4Linear(RowsApart):
    """A linear module over what a file holds.

    Args:
        codes: (outputs, inputs / 2) uint8, two elements to a byte.
        scales: (outputs, inputs / 32) uint8 of E8M0.
        bias: (outputs,), or None.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(2 * codes.shape[1], len(codes), bias)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """See `RowsApart`."""
        blocks = self.codes[first:last].view(last - first, -1, BLOCK // 2)
        return decoded(blocks, self.scales[first:last].unsqueeze(-1)).to(dtype).flatten(1)


class FloatsLinear(RowsApart):
    """A linear module over what a file holds.

    Args:
        codes: (outputs, inputs) E4M3, or (outputs, inputs / 2) uint8 of two E2M1.
        scales: (outputs, groups) fp32, E4M3 or E8M0.
        whole: () fp32, a factor of all scales.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, whole: Tensor | None = None) -> None:
        self._halves, self._kind = codes.dtype == torch.uint8, scales.dtype
        super().__init__(codes.shape[1] * (2 if self._halves else 1), len(codes))
        # 8-bit floats as bytes: a model that is turned into another precision leaves those alone
        self.register_buffer("codes", codes.view(torch.uint8))
        self.register_buffer("scales", scales if scales.dtype == torch.float32 else scales.view(torch.uint8))
        self._whole = 1.0 if whole is None else float(whole)

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """See `RowsApart`."""
        codes, scales = self.codes[first:last], self.scales[first:last]
        if self._halves:
            table = torch.tensor((*E2M1, *(-level for level in E2M1)), device=codes.device)
            numbers = table[singles(codes).int()]
        else:
            numbers = codes.view(torch.float8_e4m3fn).float()
        if self._kind == torch.float8_e4m3fn:
            scales = scales.view(self._kind).float() * self._whole
        elif scales.dtype == torch.uint8:
            scales = power(scales)
        groups = numbers.view(*scales.shape, -1) * scales.float().unsqueeze(-1)
        return groups.flatten(1).to(dtype)
