"""A linear module whose weight is sums of vectors out of tables: AQLM's additive quantization (Egiazarian et al., 2024,
section 3).

    W[o u + a, g v + b] = scale[o] sum_k table[k, code[o, g, k], a, b]

for vectors of u outputs by v inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from finetooth_torchshared.quantised import RowsApart


class CodebookLinear(RowsApart):
    """One that stores a code for each vector and table.

    Args:
        codes: (outputs / u, inputs / v, tables), integers; negative ones stand for those of the table's second half.
        tables: (tables, vectors of one, u, v), floating point.
        scales: (outputs / u,), floating point.
    """

    codes: Tensor
    tables: Tensor
    scales: Tensor

    def __init__(self, codes: Tensor, tables: Tensor, scales: Tensor) -> None:
        super().__init__(codes.shape[1] * tables.shape[3], codes.shape[0] * tables.shape[2])
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("tables", tables.contiguous())
        self.register_buffer("scales", scales.contiguous())

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """See `RowsApart`."""
        high = self.tables.shape[2]
        groups = slice(first // high, -(-last // high))
        codes = self.codes[groups].long() % self.tables.shape[1]
        summed = sum(table[codes[..., which]].float() for which, table in enumerate(self.tables))  # (o, g, u, v)
        assert isinstance(summed, Tensor)
        rows = summed.mul_(self.scales[groups].float().view(-1, 1, 1, 1)).transpose(1, 2).flatten(2).flatten(0, 1)
        return rows[first - groups.start * high : last - groups.start * high].to(dtype)
