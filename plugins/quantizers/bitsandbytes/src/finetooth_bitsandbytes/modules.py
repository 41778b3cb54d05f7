"""Linear modules over bitsandbytes' formats.

They call the library's functions that store and read back, never its modules or products: on processors with
AVX512-BF16 those repack a weight in place when they compute without gradients, and what is read back afterwards is
garbage, without an error."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from finetooth_torchshared.quantised import RowsApart
from torch import Tensor, nn

# isort: split
import bitsandbytes.functional  # after the toolbox, which keeps it from speaking of kernels

library: Any = bitsandbytes.functional
"""Most of it has no types."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class FourBitLinear(RowsApart):
    """4 bits a weight, blocks of which share the greatest magnitude in fp32, or that in 8 bits.

    Args:
        module: whose weight it is, in host memory.
        name: of the format.
        block: weights that share a scale, in the order in which they lie in memory.
        double: quantise the scales, less their mean, by blocks of 256.
    """

    at_once = 4
    codes: Tensor
    scales: Tensor
    mean: Tensor
    scales_of_scales: Tensor

    def __init__(self, module: nn.Linear, name: str, block: int, *, double: bool) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        self._name, self._block, self._double = name, block, double
        weight = module.weight.detach()
        if weight.dtype not in _DTYPES:
            weight = weight.float()
        codes, state = library.quantize_4bit(
            weight.contiguous(), blocksize=block, compress_statistics=double, quant_type=name
        )
        self.register_buffer("codes", codes)
        self.register_buffer("scales", state.absmax)
        if double:
            self.register_buffer("mean", state.offset.float())
            self.register_buffer("scales_of_scales", state.state2.absmax)
            self._scales_block = state.state2.blocksize

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """See `RowsApart`. Blocks cross the ends of rows, so reading begins with the first that has a part."""
        begin, end = first * self.in_features, last * self.in_features
        block, blocks = begin // self._block, -(-end // self._block)
        whole = block * self._block
        state = library.QuantState(
            absmax=self._scales_of(block, blocks),
            shape=torch.Size((1, end - whole)),
            blocksize=self._block,
            quant_type=self._name,
            dtype=dtype if dtype in _DTYPES else torch.float32,
        )
        read: Tensor = library.dequantize_4bit(self.codes[whole // 2 : -(-end // 2)], state)
        return read.flatten()[begin - whole :].reshape(last - first, self.in_features).to(dtype)

    def _scales_of(self, first: int, last: int) -> Tensor:
        """(last - first,) fp32, of these blocks."""
        if not self._double:
            return self.scales[first:last]
        group = first // self._scales_block
        whole = group * self._scales_block
        second = library.QuantState(
            absmax=self.scales_of_scales[group : -(-last // self._scales_block)],
            code=_levels(str(self.codes.device)),
            blocksize=self._scales_block,
            dtype=torch.float32,
        )
        read: Tensor = library.dequantize_blockwise(self.scales[whole:last], second)
        return read[first - whole :] + self.mean


class Int8Linear(RowsApart):
    """-127..127 with the greatest magnitude of a row in fp32."""

    codes: Tensor
    scales: Tensor

    def __init__(self, module: nn.Linear) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        codes, scales, _ = library.int8_vectorwise_quant(module.weight.detach().float())
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales[:, None] / 127)

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """See `RowsApart`."""
        return (self.codes[first:last].float() * self.scales[first:last]).to(dtype)


@cache
def _levels(device: str) -> Tensor:
    """The 256 levels of the scales."""
    levels: Tensor = library.create_dynamic_map().to(device)
    return levels
