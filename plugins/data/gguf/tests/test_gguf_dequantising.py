"""Dequantising piece by piece gives the numbers that the gguf package makes of the whole tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetooth_modelfiles.gguf.dequantising import PIECE, pieces
from gguf import GGMLQuantizationType, dequantize, quantize
from gguf.constants import GGML_QUANT_SIZES

QUANTIZABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0")
ONLY_READ = ("Q6_K", "Q4_K", "IQ4_XS")
"""Types that the package reads and does not write, with blocks of 256."""


def dequantise_into(numbers: torch.Tensor, blocks: np.ndarray, kind: GGMLQuantizationType) -> None:
    """As a torch model takes them."""
    for place, values in pieces(blocks, kind):
        numbers.view(-1)[place] = torch.from_numpy(values)


def stored_numbers(kind: GGMLQuantizationType, rows: int, columns: int) -> np.ndarray:
    """Stored bytes of a tensor: (rows, bytes of a row)."""
    rng = np.random.default_rng(0)
    if kind.name in QUANTIZABLE:
        packed = quantize(rng.standard_normal((rows, columns)).astype(np.float32), kind)
        return np.ascontiguousarray(packed).view(np.uint8).reshape(rows, -1)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return rng.integers(0, 64, (rows, columns // block * block_bytes), dtype=np.uint8)  # no scale is NaN or infinite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*QUANTIZABLE, *ONLY_READ])
def test_pieces_give_the_numbers_of_the_whole(name: str, dtype: torch.dtype) -> None:
    kind = GGMLQuantizationType[name]
    rows, columns = 131, 768
    assert rows * columns > 3 * PIECE
    assert rows * columns % PIECE != 0  # the last piece is a shorter one
    stored = stored_numbers(kind, rows, columns)
    stored.flags.writeable = False  # as the file is
    numbers = torch.full((rows, columns), torch.nan, dtype=dtype)
    dequantise_into(numbers, stored, kind)
    whole = torch.from_numpy(dequantize(stored, kind).copy()).to(dtype)
    assert torch.isfinite(whole.float()).all()
    assert torch.equal(numbers, whole)


def test_scale_and_offset_of_a_block() -> None:
    """Q4_1 by hand: number = scale * nibble + offset; low nibbles are the first half of a block, high ones the other
    (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, `block_q4_1`)."""
    nibbles = np.arange(32) % 16
    packed = (nibbles[:16] | nibbles[16:] << 4).astype(np.uint8)
    stored = np.concatenate([np.array([0.5, -3.0], dtype=np.float16).view(np.uint8), packed])
    numbers = torch.empty(32)
    dequantise_into(numbers, stored, GGMLQuantizationType.Q4_1)
    assert np.array_equal(numbers.numpy(), 0.5 * nibbles - 3.0)


def test_a_type_that_cannot_be_read_says_so() -> None:
    with pytest.raises(NotImplementedError):
        dequantise_into(torch.empty(4), np.zeros(4, dtype=np.uint8), GGMLQuantizationType.I8)
