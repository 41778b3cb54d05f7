"""The formats against their levels in float64 NumPy, and that nothing repacks what is stored."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install finetooth[bitsandbytes]")

from finetooth_bitsandbytes import quantizers as built
from finetooth_hooks import PlanError

# Dettmers et al., 2023, appendix E
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
       0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip
HALF_OF_FP4 = [0.0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0]
FP4 = [*HALF_OF_FP4, *[-level for level in HALF_OF_FP4]]
BUILDERS = {"nf4": built.build_nf4, "fp4": built.build_fp4}
LEVELS = {"nf4": np.array(NF4), "fp4": np.array(FP4)}


def linear(outputs, inputs, seed=0, bias=False):
    module = torch.nn.Linear(inputs, outputs, bias=bias)
    weight = np.random.default_rng(seed).standard_normal((outputs, inputs)) * 0.05
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
    return module


def four_bits(name, module, **chosen):
    quantizer = BUILDERS[name](built.FourBitOptions(**chosen), None)
    return quantizer, quantizer.linear(module, device="cpu")


@pytest.mark.parametrize(
    "shape", [(48, 256), (12, 192), (5, 33), (1, 3)]
)  # rows that blocks fill, and rows that they go on over
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_weight_becomes_the_nearest_level(name, block, shape):
    module = linear(*shape)
    _, made = four_bits(name, module, block=block, double=False)
    flat = module.weight.detach().double().numpy().reshape(-1)
    blocks = np.pad(flat, (0, -len(flat) % block)).reshape(-1, block)
    levels = np.abs(blocks).max(1)[:, None, None] * LEVELS[name]
    nearest = np.abs(blocks[..., None] - levels).min(-1).reshape(-1)[: len(flat)]
    read = made.dequantised(torch.float64).numpy().reshape(-1)
    assert np.abs(np.abs(read - flat) - nearest).max() < 1e-5  # bounds between levels are written with few digits


@pytest.mark.parametrize("name", BUILDERS)
def test_scales_in_8_bits_change_little(name):
    module = linear(256, 512)
    plain, doubled = (four_bits(name, module, double=double)[1].dequantised(torch.float64) for double in (False, True))
    assert 0 < (plain - doubled).norm() / plain.norm() < 0.01


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(40, 192), (700, 33), (24, 20)])
@pytest.mark.parametrize("name", BUILDERS)
def test_some_rows_are_those_of_the_weight(name, shape, double):
    _, made = four_bits(name, linear(*shape), block=128, double=double)
    whole = made.dequantised(torch.float32)
    for first, last in ((0, 1), (3, 17), (shape[0] - 5, shape[0])):
        assert torch.equal(made.dequantised_rows(first, last, torch.float32), whole[first:last])


def test_int8_by_row():
    module = linear(48, 200)
    made = built.build_int8(built.Int8Options()).linear(module, device="cpu")
    weight = module.weight.detach().double().numpy()
    scale = np.abs(weight).max(1, keepdims=True) / 127
    np.testing.assert_array_equal(made.codes.numpy(), np.round(weight / scale))
    np.testing.assert_allclose(made.dequantised(torch.float64).numpy(), np.round(weight / scale) * scale, rtol=1e-6)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("block", [64, 256])
def test_a_weight_takes_what_is_said(block, double):
    quantizer, made = four_bits("nf4", linear(256, 1024), block=block, double=double)
    said = quantizer.stored.bytes_per_weight * 256 * 1024
    assert sum(buffer.nbytes for buffer in made.buffers()) == pytest.approx(said, abs=4)  # the mean of the scales


@pytest.mark.parametrize("chosen", [{}, {"double": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluating_repacks_nothing(dtype, chosen):
    """What the library's own module does on processors with AVX512-BF16."""
    _, made = four_bits("nf4", linear(64, 256, bias=True).to(dtype), **chosen)
    kept = {name: buffer.clone() for name, buffer in made.named_buffers()}
    before = made.dequantised(torch.float32)
    rows = torch.randn(5, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    given = made.train()(rows.requires_grad_())
    with torch.no_grad():
        evaluated = made.eval()(rows)
        one = made(rows[:1])
    assert torch.equal(given, evaluated)
    torch.testing.assert_close(one, given[:1])
    assert all(torch.equal(kept[name], buffer) for name, buffer in made.named_buffers())
    assert torch.equal(before, made.dequantised(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_computes_with_the_weight_it_reads_back(dtype):
    _, made = four_bits("nf4", linear(24, 200))
    rng = np.random.default_rng(3)
    rows, slopes = rng.standard_normal((2, 5, 200)), rng.standard_normal((2, 5, 24))
    hidden = torch.tensor(rows).to(dtype).requires_grad_()
    given = made(hidden)
    given.backward(torch.tensor(slopes).to(dtype))
    weight = made.dequantised(torch.float64).numpy()
    off = 1e-5 if dtype == torch.float32 else 3e-2
    for found, wanted in ((given, rows @ weight.T), (hidden.grad, slopes @ weight)):
        assert np.abs(found.detach().double().numpy() - wanted).max() < off * np.abs(wanted).max()


def test_what_is_skipped():
    quantizer, _ = four_bits("fp4", linear(8, 8), skip=["down_proj"])
    assert quantizer.takes("layers.0.mlp.up_proj", (8, 8)) and not quantizer.takes("layers.0.mlp.down_proj", (8, 8))


@pytest.mark.slow
def test_its_import_says_nothing():
    done = subprocess.run(
        [sys.executable, "-c", "import finetooth_bitsandbytes.modules"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_library_that_does_not_load_is_one_line(monkeypatch):
    """For GPUs, on which the library reads 4 bits back; 8 bits are read by torch."""
    from bitsandbytes import cextension

    assert not logging.getLogger("bitsandbytes.cextension").isEnabledFor(logging.ERROR)  # a traceback at each import
    lacks = "libcublas.so.13: cannot open shared object file\nOriginal error: ..."
    monkeypatch.setattr(cextension, "lib", cextension.ErrorHandlerMockBNBNativeLibrary(lacks))
    quantizer, _ = four_bits("nf4", linear(8, 64))
    with pytest.raises(PlanError, match=r"^quantization: .* \(libcublas\.so\.13: cannot open [^\n]*file\) ") as refused:
        quantizer.linear(linear(8, 64), device="cuda:0")
    assert refused.value.action == "install what it lacks, or set quantization to int4"
    built.build_int8(built.Int8Options()).linear(linear(8, 64), device="cpu")
