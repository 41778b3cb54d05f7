"""Modules as HQQ, Quanto, EETQ and AQLM store them, against the numbers that their own packages make of them.

`library_formats.safetensors` was made on a processor by hqq 0.2.8, optimum-quanto 0.2.7 and aqlm 1.1.7: the state of a
module that each quantised, and `expected`, what its own `dequantize` gave of it. EETQ quantises with a GPU alone; its
bytes are put here one by one, as its kernels' layout is defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import RecipeError
from finetooth_torchshared.packed_files import packing_of
from finetooth_torchshared.packed_modules import Packing
from safetensors.torch import load_file
from torch import Tensor

TENSORS = load_file(Path(__file__).parent / "library_formats.safetensors")
CASES = sorted({name.partition(".expected")[0] for name in TENSORS if name.endswith(".expected")})
Parts = dict[str, Tensor]


def packing(method: str, **said: Any) -> Packing:
    found = packing_of({"quant_method": method, **said}, "m")
    assert found is not None
    return found


def parts_of(case: str) -> Parts:
    return {name.removeprefix(f"{case}."): of for name, of in TENSORS.items() if name.startswith(f"{case}.")}


@pytest.mark.parametrize("case", CASES)
def test_a_module_is_read_as_its_library_reads_it(case: str) -> None:
    parts = parts_of(case)
    expected = parts.pop("expected")
    of = packing(case.split()[0])
    assert of.tells in parts
    module = of.module(parts.__getitem__, len(expected))
    torch.testing.assert_close(module.dequantised(torch.float32), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(module.dequantised_rows(3, 6, torch.float32), expected[3:6], rtol=1e-6, atol=1e-6)
    held = module(torch.eye(expected.shape[1]))
    torch.testing.assert_close(held, expected.T + parts.get("bias", 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("bits", "bytes_a_weight"), [("8", 1), ("4", 0.5), ("3", 0.5), ("2", 0.25), ("1", 0.125)])
def test_codes_are_held_in_their_bits(bits: str, bytes_a_weight: float) -> None:
    parts = parts_of(f"hqq {bits}")
    module = packing("hqq").module(parts.__getitem__)
    assert module.get_buffer("codes").numel() == bytes_a_weight * parts["expected"].numel()


def test_eetq_by_its_layout() -> None:
    outputs, inputs = 64, 128
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (outputs, inputs))
    scales = (rng.random(outputs) / 64).astype(np.float16)
    laid = np.zeros(outputs * inputs, np.uint8)
    for output in range(outputs):
        for place in range(inputs):
            # which input of its sixteen the kernel wants at this place
            within = place % 16
            source = place - within + 8 * (within % 4 // 2) + within % 2 + 2 * (within // 4)
            # two outputs, 64 inputs of each in turn
            at = output // 2 * 2 * inputs + place // 64 * 128 + output % 2 * 64 + place % 64
            at += {1: 1, 2: -1}.get(at % 4, 0)
            laid[at] = codes[output, source] + 128
    stored = torch.from_numpy(laid.view(np.int8).reshape(inputs, outputs))
    for name in ("weight", "qweight"):  # transformers' name, and EETQ's own
        parts = {name: stored, "weight_scales": torch.from_numpy(scales)}
        numbers = packing("eetq", weights="int8").module(parts.__getitem__).dequantised(torch.float64)
        np.testing.assert_array_equal(numbers.numpy(), scales.astype(np.float64)[:, None] * codes)
    parts["qweight"] = stored[:32]
    with pytest.raises(RecipeError, match=r"eetq of 32 by 64.* multiples of 64"):
        packing("eetq").module(parts.__getitem__)


def changed(case: str, **others: Any) -> Parts:
    return {**parts_of(case), **{name: torch.as_tensor(of) for name, of in others.items()}}


@pytest.mark.parametrize(
    ("case", "others", "words"),
    [
        ("hqq 4", {"group_size": 24}, "hqq by groups of 24 over 32 inputs"),
        ("hqq 4 along outputs", {"group_size": 32}, "hqq by groups of 32 over 16 outputs"),
        ("hqq 4", {"scale": torch.ones(1)}, "hqq by groups of 8"),
        ("aqlm 2x8", {"scales": torch.ones(16, 4)}, r"aqlm with scales \(16, 4\)"),
        ("quanto qint4", {"weight._scale": torch.ones(1, 35)}, r"quanto with scales \(1, 35\)"),
    ],
)
def test_other_shapes_are_refused_by_name(case: str, others: dict[str, Any], words: str) -> None:
    parts = changed(case, **others)
    with pytest.raises(RecipeError, match=f"m is stored as {words}"):
        packing(case.split()[0]).module(parts.__getitem__, 16)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_method": "eetq", "weights": "int4"}, "eetq of other weights than int8"),
        ({"quant_method": "eetq", "bits": 8, "zero_point": True}, "eetq of other weights than int8"),
        ({"quant_method": "quanto", "weights": "int8", "activations": "int8"}, "quanto with quantised activations"),
    ],
)
def test_what_a_config_says_is_refused_by_name(said: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        packing_of(said, "m")


def test_hqq_of_another_state_is_refused() -> None:
    parts = parts_of("hqq 4")
    del parts["zero"]
    with pytest.raises(RecipeError, match="hqq without 'zero'"):
        packing("hqq").module(parts.__getitem__)
