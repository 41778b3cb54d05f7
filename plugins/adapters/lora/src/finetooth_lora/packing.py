"""Writing a transformers folder whose linear weights are packed, as compressed-tensors' `pack-quantized` and
`mxfp4-pack-quantized` have it: what transformers with that library, vLLM and finetooth itself load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks import UserError


@dataclass(frozen=True)
class Format:
    """Symmetric integers by groups, or MXFP4.

    Attributes:
        bits: 4 or 8.
        group: weights of an output that share a scale.
        floating: E2M1 under powers of two, not integers.
    """

    bits: int
    group: int
    floating: bool = False


FORMATS = {"int8": Format(8, 64), "int4": Format(4, 32), "mxfp4": Format(4, 32, floating=True)}
"""Those that `--to` knows."""


def packed(weight: Any, form: Format, name: str) -> dict[str, Any]:
    """The tensors that stand for a weight (outputs, inputs): q = round(w / s) with s = max|w| / (2^(bits - 1) - 0.5) of
    a group, between -2^(bits - 1) and 2^(bits - 1) - 1; of MXFP4 see `finetooth_torchshared.mxfp4`.

    Args:
        name: of the weight, for messages.

    Raises:
        UserError: its rows cannot be divided into groups.
    """
    import torch

    outputs, inputs = weight.shape
    if inputs % form.group:
        raise UserError(
            f"--to: {name} has {inputs} inputs, which groups of {form.group} do not divide",
            action="merge it --to plain",
        )
    groups = weight.float().reshape(outputs, -1, form.group)
    if form.floating:
        from finetooth_torchshared.mxfp4 import encoded

        elements, powers = encoded(groups)
        return {"weight_packed": elements.flatten(1), "weight_scale": powers.flatten(1)}
    half = 1 << form.bits - 1
    scales = (groups.abs().amax(-1) / (half - 0.5)).to(weight.dtype)
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    codes = (groups / scales.float()[..., None]).round().clamp(-half, half - 1).long() + half
    each = 32 // form.bits
    words = (codes.reshape(outputs, -1, each) << torch.arange(0, 32, form.bits)).sum(-1)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    shape = torch.tensor([outputs, inputs])
    return {"weight_packed": words.to(torch.int32), "weight_scale": scales, "weight_shape": shape}


def pack_folder(model: Any, folder: Path, form: Format) -> None:
    """Pack the linear weights of a written folder, file by file.

    Args:
        model: what was written; its head and embeddings stay as they are.

    Raises:
        UserError: see `packed`.
    """
    import torch
    from safetensors.torch import load_file, save_file

    head = model.get_output_embeddings()
    linear = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    kept = sorted(path for path in linear if model.get_submodule(path) is head)
    paths = linear.difference(kept)
    index = folder / "model.safetensors.index.json"
    places: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        for name in sorted(tensors):
            path = name.removesuffix(".weight")
            if name.endswith(".weight") and path in paths:
                made = packed(tensors.pop(name), form, name)
                tensors |= {f"{path}.{part}": tensor.contiguous() for part, tensor in made.items()}
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod((folder / "config.json").stat().st_mode)
        places |= dict.fromkeys(tensors, file.name)
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        index.write_text(json.dumps({**content, "weight_map": places}, indent=2), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _said(form, kept)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _said(form: Format, kept: list[str]) -> dict[str, Any]:
    """What the config says of it."""
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
        "config_groups": {"group_0": group}, "ignore": kept, "kv_cache_scheme": None,
    }  # fmt: skip
