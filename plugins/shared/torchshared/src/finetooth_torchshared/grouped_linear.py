"""A linear module whose weight is stored as integers by groups: the form into which files of other tools are read.

    W[o, i] = scale[o, g(i)] (code[o, i] - zero[o, g(i)])

where g(i) is the group of input i: as many inputs side by side, or whichever share a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finetooth_torchshared.quantised import RowsApart

Bits = Literal[4, 8]


@dataclass(frozen=True)
class Grouped:
    """A weight by groups.

    Attributes:
        codes: (outputs, inputs), uint8, each below 2^bits.
        scales: (outputs, groups), floating point.
        zeros: (outputs, groups), uint8, the code that means 0; None: 2^(bits - 1) everywhere.
        groups: (inputs,), the group of each input; None: inputs side by side share one.
        bits: 4 or 8.
        group: how many inputs side by side share a scale; 0: as many as go evenly into those that there are.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    groups: Tensor | None
    bits: Bits
    group: int = 0


class GroupedLinear(RowsApart):
    """One that stores two codes of 4 bits in a byte, the first of a pair in the lower half, or codes of 8 bits.

    Args:
        weight: what it stores.
        bias: (outputs,), or None.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Grouped, bias: Tensor | None = None) -> None:
        outputs, inputs = weight.codes.shape
        super().__init__(inputs, outputs, bias)
        self._bits, self._group = weight.bits, weight.group or -(-inputs // weight.scales.shape[1])
        codes = weight.codes
        if weight.bits == 4:
            codes = torch.nn.functional.pad(codes, (0, inputs % 2))
            codes = codes[:, ::2] | codes[:, 1::2] << 4
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scales", weight.scales.contiguous())
        self.register_buffer("zeros", None if weight.zeros is None else weight.zeros.contiguous())
        self.register_buffer("groups", None if weight.groups is None else weight.groups.to(torch.int32))

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """See `RowsApart`."""
        codes, scales = self.codes[first:last], self.scales[first:last]
        if self._bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), -1).flatten(1)[:, : self.in_features]
        zeros, groups = self._buffers["zeros"], self._buffers["groups"]
        middle = torch.full_like(scales, 1 << self._bits - 1) if zeros is None else zeros[first:last]
        return ((codes.float() - self._spread(middle, groups)).mul_(self._spread(scales, groups))).to(dtype)

    def _spread(self, of_groups: Tensor, groups: Tensor | None) -> Tensor:
        """(outputs, inputs) fp32 of what each group has."""
        of_groups = of_groups.float()
        if groups is not None:
            return of_groups[:, groups]
        return of_groups.repeat_interleave(self._group, 1)[:, : self.in_features]
