"""A linear module whose weight is stored as integers by groups: the form into which files of other tools are read.

    W[o, i] = scale[o, g(i)] (code[o, i] - zero[o, g(i)])

where g(i) is the group of input i: as many inputs side by side, or whichever share a scale. Of fewer rows of scales
than outputs, output o takes row o modulo their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from finetooth_torchshared.quantised import RowsApart

Bits = Literal[1, 2, 4, 8]


@dataclass(frozen=True)
class Grouped:
    """A weight by groups.

    Attributes:
        codes: (outputs, inputs), uint8, each below 2^bits; of 8 bits also 8-bit floats.
        scales: (outputs, groups), floating point; or fewer rows.
        zeros: of that shape, the code that means 0, which may lie between two; None: 2^(bits - 1) everywhere.
        groups: (inputs,), the group of each input; None: inputs side by side share one.
        bits: 1, 2, 4 or 8.
        group: how many inputs side by side share a scale; 0: as many as go evenly into those that there are.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    groups: Tensor | None
    bits: Bits
    group: int = 0


class GroupedLinear(RowsApart):
    """One that stores as many codes in a byte as it holds, the first in the lowest bits.

    Args:
        weight: what it stores.
        bias: (outputs,), or None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    groups: Tensor | None

    def __init__(self, weight: Grouped, bias: Tensor | None = None) -> None:
        outputs, inputs = weight.codes.shape
        super().__init__(inputs, outputs, bias)
        self._bits, self._group = weight.bits, weight.group or -(-inputs // weight.scales.shape[1])
        codes = weight.codes
        if weight.bits < 8:
            each = 8 // weight.bits
            apart = torch.nn.functional.pad(codes, (0, -inputs % each)).reshape(outputs, -1, each).unbind(2)
            codes = torch.zeros_like(apart[0])
            for place, part in enumerate(apart):
                codes |= part << place * weight.bits
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scales", weight.scales.contiguous())
        self.register_buffer("zeros", None if weight.zeros is None else weight.zeros.contiguous())
        self.register_buffer("groups", None if weight.groups is None else weight.groups.to(torch.int32))

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """See `RowsApart`."""
        codes, zeros, groups = self.codes[first:last], self.zeros, self.groups
        if self._bits < 8:
            each = [codes >> shift & (1 << self._bits) - 1 for shift in range(0, 8, self._bits)]
            codes = torch.stack(each, -1).flatten(1)[:, : self.in_features]
        rows: Any = slice(first, last)
        if (count := len(self.scales)) < self.out_features:
            rows = torch.arange(first, last, device=codes.device) % count
        scales = self.scales[rows]
        middle = torch.full_like(scales, 1 << self._bits - 1) if zeros is None else zeros[rows]
        return ((codes.float() - self._spread(middle, groups)).mul_(self._spread(scales, groups))).to(dtype)

    def _spread(self, of_groups: Tensor, groups: Tensor | None) -> Tensor:
        """(outputs, inputs) fp32 of what each group has."""
        of_groups = of_groups.float()
        if groups is not None:
            return of_groups[:, groups]
        return of_groups.repeat_interleave(self._group, 1)[:, : self.in_features]
