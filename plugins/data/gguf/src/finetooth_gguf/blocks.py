"""Linear modules over the blocks of a GGUF file, and how blocks become numbers, on every device that torch knows.

Layouts: ggml's `ggml-common.h`, `block_q4_0` and so on. The numbers are the gguf package's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from finetooth_modelfiles.gguf.package import GGML_QUANT_SIZES, GGMLQuantizationType
from finetooth_torchshared.quantised import RowsApart
from torch import Tensor

Type = GGMLQuantizationType


def _half(blocks: Tensor, at: int) -> Tensor:
    """The fp16 number at a byte of each block as fp32, (N, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(pairs: Tensor) -> Tensor:
    """(N, n) bytes as (N, 2 n): all lower halves, then all upper ones."""
    return torch.cat((pairs & 15, pairs >> 4), 1)


def _bits(bits: Tensor) -> Tensor:
    """(N, 4) bytes as (N, 32) bits, the lowest of the first byte first."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, :, None] >> places & 1).flatten(1)


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6]) << 4).float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8]) << 4).float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Of the 8 parts of a block of 256, (N, 8) each: 6 bits, in (N, 12) bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), 1)
    minima = torch.cat((second & 63, third >> 4 | second >> 6 << 4), 1)
    return scales.float(), minima.float()


def _parts(blocks: Tensor, codes: Tensor) -> Tensor:
    """(N, 8, 32) codes of a K block with minima as numbers."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    scale, least = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return (scale[:, :, None] * codes.float() - least[:, :, None]).flatten(1)


def _of_k(pairs: Tensor) -> Tensor:
    """(N, 128) bytes as (N, 8, 32): 32 lower halves, then their upper ones, four times."""
    pairs = pairs.reshape(-1, 4, 1, 32)
    return torch.cat((pairs & 15, pairs >> 4), 2).flatten(1, 2)


def _q4_k(blocks: Tensor) -> Tensor:
    return _parts(blocks, _of_k(blocks[:, 16:]))


def _q5_k(blocks: Tensor) -> Tensor:
    places = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    fifth = blocks[:, None, 16:48] >> places & 1
    return _parts(blocks, _of_k(blocks[:, 48:]) | fifth << 4)


def _q6_k(blocks: Tensor) -> Tensor:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat((low & 15, low >> 4), 2).reshape(-1, 2, 4, 32)
    places = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> places & 3
    codes = (low | high << 4).to(torch.int8).reshape(-1, 16, 16) - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (scales[:, :, None] * codes.float()).flatten(1)


READERS: Mapping[GGMLQuantizationType, Callable[[Tensor], Tensor]] = {
    Type.Q4_0: _q4_0, Type.Q4_1: _q4_1, Type.Q5_0: _q5_0, Type.Q5_1: _q5_1, Type.Q8_0: _q8_0,
    Type.Q4_K: _q4_k, Type.Q5_K: _q5_k, Type.Q6_K: _q6_k,
}  # fmt: skip
"""From (N, bytes of a block) uint8 to (N, numbers of a block) fp32."""


class BlocksLinear(RowsApart):
    """A module whose weight stays in the blocks of the file.

    Args:
        blocks: (outputs, bytes of a row), uint8.
        ggml_type: one of `READERS`.
        bias: (outputs,), or None.
    """

    blocks: Tensor

    def __init__(self, blocks: Tensor, ggml_type: GGMLQuantizationType, bias: Tensor | None = None) -> None:
        block, size = GGML_QUANT_SIZES[ggml_type]
        super().__init__(blocks.shape[1] // size * block, len(blocks), bias)
        self._read, self._size = READERS[ggml_type], size
        self.register_buffer("blocks", blocks)

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """See `RowsApart`."""
        numbers = self._read(self.blocks[first:last].view(-1, self._size))
        return numbers.to(dtype).view(last - first, self.in_features)
