"""The formats against their levels in float64, against the library's own modules and its training for them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torchao", reason="needs torchao: pip install finetooth[torchao]")

from finetooth_torchao import quantizers as built
from finetooth_torchao.modules import library_tensor

FORMS = {
    "int8": (built.build_int8, built.StoringOptions, 0.01),
    "int4": (built.build_int4, built.Int4Options, 0.12),
    "fp8": (built.build_fp8, built.StoringOptions, 0.04),
    "mxfp8": (built.build_mxfp8, built.StoringOptions, 0.04),
    "nvfp4": (built.build_nvfp4, built.StoringOptions, 0.12),
}


def linear(outputs: int = 24, inputs: int = 128) -> Any:
    module = torch.nn.Linear(inputs, outputs)
    weight = np.random.default_rng(0).standard_normal((outputs, inputs)) * 0.03
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weight))
    return module


def made(form: str, module: Any) -> Any:
    build, options, _ = FORMS[form]
    quantizer = build(options(), None)  # type: ignore[operator]
    assert quantizer.takes("up_proj", tuple(module.weight.shape))
    return quantizer, quantizer.linear(module, device="cpu")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_is_the_librarys_and_little_is_lost(form: str) -> None:
    module = linear()
    quantizer, found = made(form, module)
    read = found.dequantised(torch.float32)
    torch.testing.assert_close(read, library_tensor(module.weight.detach(), form, 32).dequantize().float())
    assert (read - module.weight).norm() / module.weight.norm() < FORMS[form][2]
    held = sum(buffer.nbytes for name, buffer in found.named_buffers() if name != "bias")
    assert held <= module.weight.numel() * quantizer.stored.bytes_per_weight + 8 * len(module.weight)
    assert not list(found.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_copying_casting_and_the_gradient(form: str) -> None:
    _, found = made(form, linear())
    read = found.dequantised(torch.float32)
    again = copy.deepcopy(found)
    again.load_state_dict(found.state_dict())
    torch.testing.assert_close(again.dequantised(torch.float32), read, rtol=0, atol=0)
    x = torch.randn(3, 128, requires_grad=True)
    y = found(x)
    torch.testing.assert_close(y, x @ read.T + found.bias)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, torch.ones(3, 24) @ read)


@pytest.mark.parametrize(("form", "levels"), [("mxfp8", None), ("nvfp4", [0, 0.5, 1, 1.5, 2, 3, 4, 6])])
def test_blocks_against_the_specification(form: str, levels: list[float] | None) -> None:
    """Each block is levels times one number; of E4M3 half of 2^-3 of a weight is the most that is lost."""
    module = linear()
    _, found = made(form, module)
    read = found.dequantised(torch.float64).numpy()
    weight = module.weight.detach().double().numpy()
    if levels is None:
        off, sizes = np.abs(read - weight).reshape(24, -1, 32), np.abs(weight).reshape(24, -1, 32)
        blocks = sizes.max(-1, keepdims=True)
        # E4M3 ends at 448, and the power of two is that below 512: what lies between is cut off
        share = np.where(sizes > 0.85 * blocks, 1 / 8, 1 / 16)
        assert (off <= share * sizes + blocks * 2.0**-14).all()
        return
    largest = np.abs(read).reshape(24, -1, 16).max(-1, keepdims=True)
    ratios = np.abs(read).reshape(24, -1, 16) / largest * 6
    assert np.abs(ratios[..., None] - np.array(levels)).min(-1).max() < 1e-5


def test_training_for_int4_computes_as_the_librarys_own() -> None:
    """What `adapter: qat` rounds to is what torchao's prepared module computes with."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.qat import QATConfig

    module = linear()
    _, found = made("int4", module)
    theirs: Any = torch.nn.Sequential(copy.deepcopy(module))
    base = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    quantize_(theirs, QATConfig(base, step="prepare"))
    x = torch.randn(5, 128)
    torch.testing.assert_close(theirs(x), found(x), atol=1e-5, rtol=1e-4)
    quantize_(theirs, QATConfig(base, step="convert"))
    torch.testing.assert_close(theirs(x), found(x), atol=1e-5, rtol=1e-4)


def test_rows_that_blocks_do_not_fill_stay() -> None:
    for form, (build, options, _) in FORMS.items():
        quantizer = build(options(skip=["down_proj"]), None)  # type: ignore[operator]
        assert quantizer.takes("up_proj", (8, 40)) == (form in ("int8", "fp8"))
        assert not quantizer.takes("layers.0.down_proj", (8, 128))
