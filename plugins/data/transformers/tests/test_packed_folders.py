"""Folders as gptqmodel, AutoAWQ and compressed-tensors pack them, by an independent packer: read as the numbers that
were packed, held in the bits they were stored in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import RecipeError
from finetooth_torchshared.grouped_linear import GroupedLinear
from finetooth_torchshared.quantised import stored_weights
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

Codes = NDArray[np.int64]
GROUP = 8


def by_int32(codes: Codes, bits: int) -> NDArray[np.int32]:
    """(..., n) codes as (..., n / f) numbers, one code after the other, the first in the lowest bits."""
    each = 32 // bits
    out = np.zeros((*codes.shape[:-1], codes.shape[-1] // each), np.uint32)
    for index in np.ndindex(*out.shape):
        for place in range(each):
            code = int(codes[(*index[:-1], index[-1] * each + place)])
            out[index] |= np.uint32(code << bits * place)
    return out.view(np.int32)


def gptq(codes: Codes, scales: Any, zeros: Codes, bits: int, less: int, order: Codes | None) -> dict[str, Any]:
    found = {
        "qweight": by_int32(np.ascontiguousarray(codes), bits).T,  # along the inputs
        "qzeros": by_int32(np.ascontiguousarray(zeros.T) - less, bits),
        "scales": scales.T.astype(np.float16),
    }
    inputs = codes.shape[1]
    found["g_idx"] = (np.arange(inputs) // GROUP if order is None else order).astype(np.int32)
    return found


def awq(codes: Codes, scales: Any, zeros: Codes) -> dict[str, Any]:
    def columns(of: Codes) -> NDArray[np.int32]:  # (rows, O): eight columns, whose order is AWQ's
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return by_int32(of.reshape(len(of), -1, 8)[:, :, order].reshape(len(of), -1), 4)

    return {"qweight": columns(codes.T), "qzeros": columns(zeros.T), "scales": scales.T.astype(np.float16)}


def compressed(codes: Codes, scales: Any, zeros: Codes | None, bits: int) -> dict[str, Any]:
    outputs, inputs = codes.shape
    found = {"weight_packed": by_int32(codes, bits), "weight_scale": scales.astype(np.float16),
             "weight_shape": np.array([outputs, inputs])}  # fmt: skip
    if zeros is not None:
        found["weight_zero_point"] = by_int32(np.ascontiguousarray(zeros.T), bits).T
    return found


def hqq(codes: Codes, scales: Any, zeros: Codes) -> dict[str, Any]:
    rows = codes.reshape(-1, GROUP)  # its first half in the upper four bits
    upper, lower = np.split(rows, 2)
    said = {"nbits": 4, "group_size": GROUP, "axis": 1, "shape": codes.shape}
    scales, zeros = scales.reshape(-1, 1), zeros.reshape(-1, 1).astype(np.float16)
    arrays = {key: np.array(value) for key, value in said.items()}
    return {"W_q": (upper << 4 | lower).astype(np.uint8), "scale": scales, "zero": zeros, **arrays}


def quanto(codes: Codes, scales: Any, zeros: Codes) -> dict[str, Any]:
    rows = codes.reshape(-1, GROUP)  # its first half in the lower four bits
    lower, upper = np.split(rows, 2)
    shifts = scales.astype(np.float32) * zeros
    return {"weight._data._data": (upper << 4 | lower).astype(np.uint8), "weight._scale": scales.reshape(-1, 1),
            "weight._shift": shifts.reshape(-1, 1).astype(np.float32), "input_scale": np.ones(()),
            "output_scale": np.ones(())}  # fmt: skip


def of_ct(bits: int, even: bool) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "group_size": GROUP, "strategy": "group", "symmetric": even}
    group = {"weights": weights, "targets": ["Linear"], "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}


CASES: dict[str, tuple[dict[str, Any], Callable[..., dict[str, Any]], int, bool]] = {
    "gptq 4": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP}, lambda c, s, z, o: gptq(c, s, z, 4, 1, None),
               4, False),
    "gptq 8": ({"quant_method": "gptq", "bits": 8, "group_size": GROUP}, lambda c, s, z, o: gptq(c, s, z, 8, 1, None),
               8, False),
    "gptq symmetric": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True},
                       lambda c, s, z, o: gptq(c, s, z, 4, 1, None), 4, True),
    "gptq v2": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
                lambda c, s, z, o: gptq(c, s, z, 4, 0, None), 4, False),
    "gptq in the order of activations": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
                                         lambda c, s, z, o: gptq(c, s, z, 4, 1, o), 4, False),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, lambda c, s, z, o: awq(c, s, z),
            4, False),
    "compressed 4": (of_ct(4, True), lambda c, s, z, o: compressed(c, s, None, 4), 4, True),
    "compressed 8": (of_ct(8, True), lambda c, s, z, o: compressed(c, s, None, 8), 8, True),
    "compressed with zeros": (of_ct(4, False), lambda c, s, z, o: compressed(c, s, z, 4), 4, False),
    "hqq": ({"quant_method": "hqq", "quant_config": {}}, lambda c, s, z, o: hqq(c, s, z), 4, False),
    "quanto": ({"quant_method": "quanto", "weights": "int4"}, lambda c, s, z, o: quanto(c, s, z), 4, False),
}  # fmt: skip


def pack(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    """Pack the linear weights of a folder; returns what they mean, by path."""
    said, packer, bits, even = CASES[name]
    rng = np.random.default_rng(0)
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for full in [full for full in tensors if full.endswith("_proj.weight")]:
        outputs, inputs = tensors.pop(full).shape
        path = full.removesuffix(".weight")
        groups = inputs // GROUP
        codes = rng.integers(0, 1 << bits, (outputs, inputs))
        scales = (rng.random((outputs, groups)) / 64).astype(np.float16)
        zeros = rng.integers(1, 1 << bits, (outputs, groups))
        if even:
            zeros[:] = 1 << bits - 1
        of = rng.permutation(inputs) // GROUP if "order" in name else np.arange(inputs) // GROUP
        meant[path] = scales.astype(np.float64)[:, of] * (codes - zeros[:, of])
        for part, array in packer(codes, scales, zeros, of).items():
            tensors[f"{path}.{part}"] = torch.from_numpy(np.ascontiguousarray(array))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    return meant


@pytest.mark.parametrize("name", CASES)
def test_a_packed_folder_is_read(
    name: str, tmp_path: Path, write: Callable[..., Any], loader_of: Callable[..., Any]
) -> None:
    plain = write(tmp_path / "m")
    meant = pack(tmp_path / "m", name)
    loader = loader_of()
    info = loader.describe(str(tmp_path / "m"))
    model = loader.load(str(tmp_path / "m"), framework="torch", precision="fp32", device="cpu")
    held = {path: module for path, module in model.named_modules() if isinstance(module, GroupedLinear)}
    assert set(held) == set(meant)
    for path, module in held.items():
        np.testing.assert_allclose(module.dequantised(torch.float64).numpy(), meant[path], rtol=1e-6, atol=1e-7)
    assert info.stored_weights == stored_weights(model) and info.stored is not None
    assert info.parameters == sum(parameter.numel() for parameter in plain.parameters())
    # what it computes is what a model of those numbers computes
    with torch.no_grad():
        for path, numbers in meant.items():
            plain.get_submodule(path).weight.copy_(torch.from_numpy(numbers))
        ids = torch.arange(1, 33).reshape(2, 16)
        torch.testing.assert_close(model(ids).logits, plain.eval()(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_method": "gptq", "bits": 3}, "gptq of 3 bits, which finetooth cannot read"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq, version gemv"),
        ({**of_ct(4, True), "config_groups": {"a": {"weights": {}}, "b": {"weights": {}}}}, "of several groups"),
        ({"quant_method": "auto-round"}, "install auto-round"),
        ({"quant_method": "eetq", "bits": 4}, "eetq of other weights than int8"),
        ({"quant_method": "quanto", "weights": "int8", "activations": "int8"}, "quanto with quantised activations"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_do(
    said: dict[str, Any], words: str, tmp_path: Path, write: Callable[..., Any], loader_of: Callable[..., Any]
) -> None:
    write(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps({**config, "quantization_config": said}))
    with pytest.raises(RecipeError, match=words):
        loader_of().describe(str(tmp_path / "m"))


def test_a_folder_of_optimum_quanto_is_known_by_its_map(
    tmp_path: Path, write: Callable[..., Any], loader_of: Callable[..., Any]
) -> None:
    """Its config says nothing of how it is stored."""
    write(tmp_path / "m")
    meant = pack(tmp_path / "m", "quanto")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps({**config, "quantization_config": None}))
    modules = {path: {"weights": "qint4", "activations": "none"} for path in meant}
    (tmp_path / "m/quanto_qmap.json").write_text(json.dumps(modules))
    info = loader_of().describe(str(tmp_path / "m"))
    assert info.stored is not None and info.stored.name == "quanto, 4 bits"
    model = loader_of().load(str(tmp_path / "m"), framework="torch", precision="fp32", device="cpu")
    for path, numbers in meant.items():
        np.testing.assert_allclose(model.get_submodule(path).dequantised(torch.float64).numpy(), numbers, 1e-6, 1e-7)
