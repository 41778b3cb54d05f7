"""Folders whose weights are quantised already: what is said of them before a weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetooth_hooks import RecipeError
from finetooth_transformers.quantised import stored_as, turned_back
from safetensors.torch import load_file, save_file

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}
GROUPS = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128, "type": "int"}}}}

CASES = [
    (FP8, "fp8", 1.0),
    ({"quant_method": "mxfp4"}, "mxfp4", 0.5 + 1 / 32),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits", 0.5 + 2.5 / 128),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq, 8 bits", 1.0),
    ({"quant_method": "awq", "bits": 4, "group_size": 64}, "awq, 4 bits", 0.5 + 2.5 / 64),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits", 1.0),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes, 4 bits", 0.5 + 4 / 64),
    ({"quant_method": "compressed-tensors", **GROUPS}, "compressed-tensors, 4 bits", 0.5 + 2.5 / 128),
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, "torchao, 8 bits", 1.0),
    ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao, 4 bits", 0.5),
    ({"quant_method": "quanto", "weights": "int2"}, "quanto, 2 bits", 0.25),
    ({"quant_method": "hqq", "quant_config": {}}, "hqq, 4 bits", 0.5),
    (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 2, "group_size": 16}}},
        "hqq, 2 bits",
        0.25 + 4 / 16,
    ),
    (
        {"quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1, "num_codebooks": 2, "nbits_per_codebook": 8},
        "aqlm, 2 bits",
        0.25,
    ),
    ({"quant_method": "eetq", "weights": "int8"}, "eetq, 8 bits", 1.0),
    ({"quant_method": "one of tomorrow"}, "one of tomorrow, 8 bits", 1.0),
]


@pytest.mark.parametrize(("given", "name", "size"), CASES, ids=[name for _, name, _ in CASES])
def test_what_a_config_says(given: dict[str, Any], name: str, size: float) -> None:
    for config in ({"quantization_config": given}, {"text_config": {"quantization_config": given}}):
        found = stored_as(config)
        assert found is not None and found.name == name
        assert found.bytes_per_weight == pytest.approx(size)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quantization_config": None},
        {"quantization_config": {"quant_method": "mxfp4", "dequantize": True}},
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "dense"}},
    ],
)
def test_plain_numbers(config: dict[str, Any]) -> None:
    assert stored_as(config) is None


def as_fp8(folder: Path) -> dict[str, torch.Tensor]:
    """Store the linear weights of a folder in fp8, a scale for each 8 by 8; returns what the bits mean."""
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name, weight in list(tensors.items()):
        if not name.endswith("_proj.weight"):
            continue
        blocks = weight.unflatten(0, (-1, 8)).unflatten(2, (-1, 8))  # (R, 8, C, 8)
        scale = blocks.abs().amax((1, 3)) / 448
        stored = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        meant[name] = (stored.float() * scale[:, None, :, None]).reshape(weight.shape)
        tensors[name] = stored.reshape(weight.shape)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said(folder, FP8)
    return meant


def said(folder: Path, quantization: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


def test_an_fp8_folder(tmp_path: Path, write: Callable[..., Any], loader_of: Callable[..., Any]) -> None:
    model = write(tmp_path / "m")
    meant = as_fp8(tmp_path / "m")
    info = loader_of().describe(str(tmp_path / "m"))
    assert info.stored is not None and info.stored.name == "fp8"
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())  # scales are none
    assert turned_back(info.config) is (not torch.cuda.is_available())
    if torch.cuda.is_available():
        return
    assert info.resident_bytes is None  # nothing here computes with fp8: they are plain numbers in memory
    loaded = loader_of().load(str(tmp_path / "m"), framework="torch", precision="fp32", device="cpu")
    for name, weight in meant.items():
        torch.testing.assert_close(loaded.get_parameter(name), weight, rtol=1e-2, atol=1e-3)


def test_an_fp8_folder_as_plain_numbers(
    tmp_path: Path, write: Callable[..., Any], loader_of: Callable[..., Any]
) -> None:
    """On every machine, so that all of it can train; what is saved then says nothing of fp8."""
    model = write(tmp_path / "m")
    meant = as_fp8(tmp_path / "m")
    loader = loader_of(dequantize=True)
    info = loader.describe(str(tmp_path / "m"))
    assert info.stored is None and info.resident_bytes is None
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    loaded = loader.load(str(tmp_path / "m"), framework="torch", precision="fp32", device="cpu")
    for name, weight in meant.items():
        torch.testing.assert_close(loaded.get_parameter(name), weight, rtol=1e-2, atol=1e-3)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    loaded.save_pretrained(tmp_path / "saved")
    written = load_file(tmp_path / "saved/model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())
    said(tmp_path / "m", {"quant_method": "gptq", "bits": 4, "group_size": 16})
    with pytest.raises(RecipeError, match=r"model\.loader\.dequantize: .* is stored as gptq, .*\(leave it out, and"):
        loader.describe(str(tmp_path / "m"))


def test_packed_weights_are_counted_as_what_they_stand_for(
    tmp_path: Path, write: Callable[..., Any], loader_of: Callable[..., Any]
) -> None:
    """Eight weights of four bits lie in one number: neither their count nor their bytes are those of plain ones."""
    model = write(tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        outputs, inputs = tensors.pop(name).shape
        path = name.removesuffix(".weight")
        tensors[f"{path}.qweight"] = torch.zeros(inputs // 8, outputs, dtype=torch.int32)
        tensors[f"{path}.scales"] = torch.ones(1, outputs, dtype=torch.float16)
    save_file(tensors, tmp_path / "m/model.safetensors")
    said(tmp_path / "m", {"quant_method": "gptq", "bits": 4, "group_size": 16})
    info = loader_of().describe(str(tmp_path / "m"))
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert info.resident_bytes == info.weight_bytes == (tmp_path / "m/model.safetensors").stat().st_size
    assert info.stored is not None and info.stored.name == "gptq, 4 bits"
