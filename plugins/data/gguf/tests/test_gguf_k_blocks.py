"""Blocks of 256 that are made here, read by the gguf package; and which tensor of `q4_k_m` is stored as what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetooth_gguf.blocks import READERS
from finetooth_gguf.k_blocks import encode
from finetooth_gguf.mixes import type_of
from gguf import dequantize, quantize
from gguf.constants import GGMLQuantizationType as Type


def _weights(rows: int, columns: int) -> np.ndarray:
    """Normally distributed, of another size in each row, with a few far out."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((rows, columns)) * np.exp(generator.standard_normal((rows, 1)) - 3)
    weights[generator.random(weights.shape) < 0.002] *= 6
    return weights.astype(np.float32)


def _off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(((found - wanted) ** 2).sum() / (wanted**2).sum()))


@pytest.mark.parametrize(
    ("kind", "bits", "than", "most"), [("Q4_K", 4.5, "Q4_1", 0.09), ("Q6_K", 6.5625, "Q5_0", 0.025)]
)
def test_another_reader_finds_the_weights(kind: str, bits: float, than: str, most: float) -> None:
    """Nearer than the simple type that takes 5 bits a weight; the reader over which is trained reads the same."""
    wanted = _weights(48, 768)
    made = encode(wanted, Type[kind])
    assert made.shape[1] * 8 / wanted.shape[1] == bits
    found = dequantize(made, Type[kind])
    assert _off(found, wanted) < min(most, _off(dequantize(quantize(wanted, Type[than]), Type[than]), wanted))
    ours = READERS[Type[kind]](torch.from_numpy(made.reshape(-1, int(bits * 32)))).reshape(wanted.shape)
    np.testing.assert_array_equal(ours.numpy(), found)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_numbers_on_its_levels_come_back(kind: str) -> None:
    """Random codes under scales that are powers of two; a block of zeros; blocks of one sign."""
    generator = np.random.default_rng(1)
    most, part = (15, 32) if kind == "Q4_K" else (31, 16)
    codes = generator.integers(0, most + 1, (4, 256 // part, part)).astype(np.float32)
    codes[..., 0], codes[..., 1] = 0, most if kind == "Q4_K" else -32
    numbers = (codes * 2.0**-7).reshape(4, 256).astype(np.float32)
    numbers[1] = 0
    for wanted in (numbers, np.abs(numbers)):
        found = dequantize(encode(wanted, Type[kind]), Type[kind])
        assert np.abs(found - wanted).max() <= 2.0**-7 * 0.15
        assert not found[1].any()


def test_pieces_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _weights(3, 512)
    whole = encode(wanted, Type.Q4_K)
    monkeypatch.setattr("finetooth_gguf.k_blocks.PIECE", 4)
    np.testing.assert_array_equal(encode(wanted, Type.Q4_K), whole)


@pytest.mark.parametrize(
    ("tensor", "shape", "tied", "kind"),
    [
        ("blk.0.attn_q.weight", (512, 512), False, "Q4_K"),
        ("blk.0.attn_v.weight", (512, 512), False, "Q6_K"),
        ("blk.4.attn_v.weight", (512, 512), False, "Q6_K"),
        ("blk.5.ffn_down.weight", (512, 512), False, "Q4_K"),
        ("blk.15.ffn_down.weight", (512, 1024), False, "Q6_K"),
        ("blk.3.ffn_down.weight", (512, 576), False, "Q5_0"),
        ("blk.0.ffn_down.weight", (512, 576), False, "Q8_0"),
        ("output.weight", (900, 512), False, "Q6_K"),
        ("token_embd.weight", (900, 512), False, "Q4_K"),
        ("token_embd.weight", (900, 512), True, "Q6_K"),
        ("blk.0.attn_norm.weight", (512,), False, "F32"),
    ],
)
def test_the_mix_of_q4_k_m(tensor: str, shape: tuple[int, ...], tied: bool, kind: str) -> None:
    assert type_of(tensor, shape, "q4_k_m", 16, tied=tied).name == kind
    if len(shape) > 1:
        assert type_of(tensor, shape, "q4_0", 16, tied=tied).name == "Q4_0"
