"""Writing a transformers folder whose linear weights are packed, as compressed-tensors' `pack-quantized` and
`mxfp4-pack-quantized` have it: what transformers with that library, vLLM and finetooth itself load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks import UserError


@dataclass(frozen=True)
class Format:
    """Symmetric integers by groups, or MXFP4.

    Attributes:
        bits: 4 or 8.
        group: weights of an output that share a scale.
        floating: E2M1 under powers of two, not integers.
    """

    bits: Literal[4, 8]
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

    from finetooth_torchshared.packed_files import words

    outputs, inputs = weight.shape
    if inputs % form.group:
        raise UserError(
            f"--to: {name} has {inputs} inputs, which groups of {form.group} do not divide",
            action="leave it in plain numbers",
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
    shape = torch.tensor([outputs, inputs])
    return {"weight_packed": words(codes.flatten(1), form.bits, 1), "weight_scale": scales, "weight_shape": shape}


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
    return len(paths)


def _said(form: Format, ignored: list[str]) -> dict[str, Any]:
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
