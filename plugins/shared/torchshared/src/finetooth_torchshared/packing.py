"""Writing a transformers folder whose linear weights are packed, rounded one by one: as compressed-tensors'
`pack-quantized` and `mxfp4-pack-quantized` have it, which transformers with that library, vLLM and finetooth itself
load; as HQQ has it, which vLLM and its own package load; as optimum-quanto has it, which loads it. For the layouts see
`packed_files` and `library_formats`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks import UserError


@dataclass(frozen=True)
class Format:
    """A layout of files.

    Attributes:
        library: whose it is.
        bits: 4 or 8.
        group: weights of an output that share a scale; 0: all of them.
        floating: E2M1 under powers of two, not integers.
    """

    library: Literal["compressed-tensors", "hqq", "quanto"]
    bits: Literal[4, 8]
    group: int
    floating: bool = False


FORMATS = {
    "int8": Format("compressed-tensors", 8, 64),
    "int4": Format("compressed-tensors", 4, 32),
    "mxfp4": Format("compressed-tensors", 4, 32, floating=True),
    "hqq": Format("hqq", 4, 64),
    "quanto_int8": Format("quanto", 8, 0),
    "quanto_int4": Format("quanto", 4, 128),
}
"""Those that `--to` knows."""


def packed(weight: Any, form: Format, name: str) -> dict[str, Any]:
    """The tensors that stand for a weight (outputs, inputs).

    - compressed-tensors: q = round(w / s) with s = max|w| / (2^(bits - 1) - 0.5) of a group, between -2^(bits - 1) and
      2^(bits - 1) - 1; of MXFP4 see `finetooth_torchshared.mxfp4`.
    - HQQ: w = (q - z) s with s = (max w - min w) / 15 of a group and the zero of `library_formats.best_minima`.
    - Quanto: q = round(w / s) with s = max|w| / 127 of an output; of 4 bits w = q s - t with s as of HQQ, t = -min w.

    Args:
        name: of the weight, for messages.

    Raises:
        UserError: its rows cannot be divided into groups.
    """
    import torch

    from finetooth_torchshared.packed_files import words

    outputs, inputs = weight.shape
    group = _group(form, inputs)
    if inputs % group:
        raise UserError(
            f"--to: {name} has {inputs} inputs, which groups of {group} do not divide",
            action="leave it in plain numbers",
        )
    groups = weight.float().reshape(outputs, -1, group)
    if form.library != "compressed-tensors":
        return _of_libraries(groups, form, weight)
    if form.floating:
        from finetooth_torchshared.mxfp4 import encoded

        elements, powers = encoded(groups)
        return {"weight_packed": elements.flatten(1), "weight_scale": powers.flatten(1)}
    half = 1 << form.bits - 1
    scales = _scales(groups.abs().amax(-1) / (half - 0.5), weight.dtype)
    codes = (groups / scales.float()[..., None]).round().clamp(-half, half - 1).long() + half
    shape = torch.tensor([outputs, inputs])
    return {"weight_packed": words(codes.flatten(1), form.bits, 1), "weight_scale": scales, "weight_shape": shape}


def _of_libraries(groups: Any, form: Format, weight: Any) -> dict[str, Any]:
    """See `packed`.

    Args:
        groups: (outputs, groups, group) fp32 of the weight.
    """
    import torch

    from finetooth_torchshared.library_formats import best_minima, hqq_settings, in_stretches

    dtype, rows = weight.dtype, groups.flatten(0, 1)
    if form.bits == 8:
        scales = _scales(rows.abs().amax(-1, keepdim=True) / 127, dtype)
        made = {
            "weight._data": (rows / scales.float()).round().clamp(-127, 127).to(torch.int8),
            "weight._scale": scales,
        }
    else:
        minima = rows.amin(-1, keepdim=True)
        scales = _scales((rows.amax(-1, keepdim=True) - minima) / 15, dtype)
        wide = scales.float()
        if form.library == "hqq":
            minima = best_minima(rows, wide, minima, lambda of: (of / wide).to(dtype).float() * wide)
            zeros = (-minima / wide).to(dtype)
            codes = (rows / wide + zeros.float()).round().clamp(0, 15)
            packed = in_stretches(codes.to(torch.uint8), first_lowest=False)
            return {"W_q": packed, "scale": scales, "zero": zeros, **hqq_settings(weight, form.bits, form.group)}
        shifts = (-minima).to(dtype)
        codes = ((rows + shifts.float()) / wide).round().clamp(0, 15)
        packed = in_stretches(codes.to(torch.uint8), first_lowest=True)
        made = {"weight._data._data": packed, "weight._scale": scales, "weight._shift": shifts}
    return {**made, "input_scale": torch.ones(()), "output_scale": torch.ones(())}


def _scales(wanted: Any, dtype: Any) -> Any:
    """In this type; 1 where a group needs none."""
    import torch

    scales = wanted.to(dtype)
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def _group(form: Format, inputs: int) -> int:
    """Weights that share a scale. Of 4 bits, optimum-quanto takes fewer where its 128 do not divide the inputs, and all
    of them where there are no more or no such number does."""
    if form.library != "quanto":
        return form.group
    fewer = (size for size in range(form.group, 0, -32) if inputs > form.group and inputs % size == 0)
    return next(fewer, inputs)


def pack_folder(model: Any, folder: Path, form: Format) -> int:
    """Pack the linear weights of a written folder, file by file; how many modules.

    Args:
        model: what was written; its head and embeddings stay as they are.

    Raises:
        UserError: see `packed`.
    """
    import torch

    from finetooth_torchshared.packed_files import repack

    head = model.get_output_embeddings()
    linear = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    plain = sorted(path for path in linear if model.get_submodule(path) is head)
    paths = linear.difference(plain)

    def pack(name: str, tensor: Any) -> dict[str, Any]:
        path = name.removesuffix(".weight")
        if not name.endswith(".weight") or path not in paths:
            return {name: tensor}
        return {f"{path}.{part}": of for part, of in packed(tensor, form, name).items()}

    repack(folder, pack, {"quantization_config": _said(form, plain)})
    if form.library == "quanto":  # by which optimum-quanto knows a folder of its own
        kinds = {path: {"weights": f"qint{form.bits}", "activations": "none"} for path in sorted(paths)}
        (folder / "quanto_qmap.json").write_text(json.dumps(kinds, indent=1) + "\n", encoding="utf-8")
    return len(paths)


def _said(form: Format, ignored: list[str]) -> dict[str, Any]:
    """What the config says of it."""
    if form.library == "quanto":
        said = {"weights": f"int{form.bits}", "activations": None, "modules_to_not_convert": ignored}
        return {"quant_method": "quanto", **said}
    if form.library == "hqq":
        weights: dict[str, Any] = {
            "nbits": form.bits, "group_size": form.group, "axis": 1, "channel_wise": True, "optimize": True,
            "round_zero": False, "view_as_float": False,
        }  # fmt: skip
        given = {"weight_quant_params": weights, "scale_quant_params": None, "zero_quant_params": None}
        return {"quant_method": "hqq", "quant_config": given, "skip_modules": ignored}
    weights = {
        "num_bits": form.bits, "type": "float" if form.floating else "int", "symmetric": True, "strategy": "group",
        "group_size": form.group,
        "dynamic": False, "observer": "minmax",
    }  # fmt: skip
    if form.floating:
        weights |= {"scale_dtype": "torch.uint8"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "quantization_status": "compressed",
        "format": "mxfp4-pack-quantized" if form.floating else "pack-quantized",
        "config_groups": {"group_0": group}, "ignore": ignored, "kv_cache_scheme": None,
    }  # fmt: skip


def without_memory(folder: Path) -> Any:
    """The model of a folder on torch's device `meta`; None where only its loader knows what it is."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(folder))
    named = (getattr(config, "architectures", None) or [""])[0]
    made = getattr(transformers, named, None)
    if made is None or not named.endswith(("ForCausalLM", "ForConditionalGeneration")):
        return None
    with torch.device("meta"):
        model = made(config)
    generation = folder / "generation_config.json"
    if generation.is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(str(folder))
    return model
