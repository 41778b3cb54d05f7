"""Weights written in the layouts of HQQ and Quanto: read back by our reader, compared with what those packages write of
a module, and loaded by the packages themselves where they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetooth_hooks import UserError
from finetooth_torchshared.packed_files import packing_of
from finetooth_torchshared.packing import FORMATS, packed
from safetensors.torch import load_file
from torch import Tensor

PARTS = ("hqq", "quanto_int8", "quanto_int4")
STEPS = {"hqq": 15, "quanto_int8": 254, "quanto_int4": 15}


def weight(outputs: int = 6, inputs: int = 256, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)


def read(form: str, parts: dict[str, Tensor], outputs: int) -> Tensor:
    packing = packing_of({"quant_method": FORMATS[form].library}, "m")
    assert packing is not None
    return packing.module(parts.__getitem__, outputs).dequantised(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", PARTS)
def test_each_weight_is_its_nearest_level(form: str, dtype: torch.dtype) -> None:
    """Up to half a step of its group, and what the type of scales and zeros rounds away."""
    of = weight(dtype=dtype)
    parts = packed(of, FORMATS[form], "w")
    back = read(form, parts, len(of))
    groups = of.float().view(-1, FORMATS[form].group or of.shape[1])
    width = groups.amax(1) - groups.amin(1) if STEPS[form] == 15 else 2 * groups.abs().amax(1)
    far = (back - of.float()).abs().view_as(groups).amax(1) / (width / STEPS[form])
    slack = {torch.float32: 0.5, torch.float16: 0.55, torch.bfloat16: 1.0}[dtype]
    # half-quadratic zeros leave the outermost weights out, by a step or two
    assert far.median() < slack + 1e-3 and far.max() < (3 if form == "hqq" else slack + 1e-3)


def test_half_quadratic_zeros_make_the_sum_of_small_powers_less() -> None:
    of = weight()
    of[:, ::64] *= 6  # some weights are far off
    apart: dict[str, Any] = {form: read(form, packed(of, FORMATS[form], "w"), 6) - of for form in PARTS}
    assert apart["hqq"].abs().pow(0.7).mean() < apart["quanto_int4"].abs().pow(0.7).mean()


@pytest.mark.parametrize(
    ("form", "theirs"), [("hqq", "hqq 4"), ("quanto_int8", "quanto qint8"), ("quanto_int4", "quanto qint4")]
)
def test_parts_are_those_that_the_package_writes(form: str, theirs: str) -> None:
    """The same names, types and settings; groups and sizes are of the case, and zeros are not rounded before they are
    sought."""
    written = load_file(Path(__file__).parent / "library_formats.safetensors")
    wanted = {name.removeprefix(f"{theirs}."): of for name, of in written.items() if name.startswith(f"{theirs}.")}
    outputs, inputs = wanted.pop("expected").shape
    wanted.pop("bias", None)
    made = packed(weight(outputs, inputs if form != "hqq" else 64), FORMATS[form], "w")
    assert {name: (of.dtype, of.dim()) for name, of in made.items()} == {
        name: (of.dtype, of.dim()) for name, of in wanted.items()
    }
    sized = {
        "W_q",
        "round_zero",
        "scale",
        "zero",
        "shape",
        "group_size",
        "weight._data",
        "weight._scale",
        "weight._shift",
    }
    for name in made.keys() - sized - {"weight._data._data"}:
        torch.testing.assert_close(made[name], wanted[name], msg=name)
    if form == "quanto_int4":  # 160 inputs are no multiple of 128, and optimum-quanto takes 32
        assert made["weight._data._data"].shape == wanted["weight._data._data"].shape


def test_a_row_that_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="w has 100 inputs, which groups of 64 do not divide"):
        packed(weight(inputs=100), FORMATS["hqq"], "w")
    assert packed(weight(inputs=100), FORMATS["quanto_int4"], "w")["weight._scale"].shape == (6, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hqq_itself_loads_it(dtype: torch.dtype) -> None:
    quantize = pytest.importorskip("hqq.core.quantize")
    of = weight(dtype=dtype)
    parts = packed(of, FORMATS["hqq"], "w")
    module = quantize.HQQLinear(None, None, device="cpu", initialize=False)
    module.load_state_dict({name: part.clone() for name, part in parts.items()})
    torch.testing.assert_close(module.dequantize().float(), read("hqq", parts, 6), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("form", ["quanto_int8", "quanto_int4"])
@pytest.mark.parametrize("inputs", [96, 160, 256])
def test_optimum_quanto_itself_loads_it(form: str, inputs: int) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    of = weight(inputs=inputs)
    parts = packed(of, FORMATS[form], "w")
    model = torch.nn.Sequential(torch.nn.Linear(inputs, 6, bias=False))
    kinds = {"0": {"weights": f"qint{FORMATS[form].bits}", "activations": "none"}}
    quanto.requantize(model, {f"0.{name}": part for name, part in parts.items()}, kinds)
    torch.testing.assert_close(model[0].weight.dequantize(), read(form, parts, 6), rtol=1e-6, atol=1e-6)
