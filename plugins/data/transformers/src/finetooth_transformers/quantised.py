"""Quantised checkpoints: the description of their format in the config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from finetooth_hooks.errors import RecipeError, install_command
from finetooth_hooks.protocols import Stored
from finetooth_toolbox.attention_choice import missing_packages

BITS = {
    "auto-round": 4,
    "awq": 4,
    "bitnet": 2,
    "fouroversix": 4,
    "fp_quant": 4,
    "gptq": 4,
    "higgs": 4,
    "hqq": 4,
    "metal": 4,
    "mxfp4": 4,
    "nvfp4": 4,
    "quark": 8,
    "sinq": 4,
    "spqr": 4,
    "vptq": 2,
}
"""Of a weight by method, where the config does not say; 8 for all others (fp8, eetq, ...)."""

SCALES = {"mxfp4": 1 / 32, "mxfp8": 1 / 32, "nvfp4": 1 / 16}
"""Bytes of scales per weight, of formats with blocks of weights."""

TURNED_BACK = frozenset({"fp8", "mxfp8", "mxfp4", "metal"})
"""Methods that transformers turns back into plain numbers where nothing computes with them."""

UNREAD = frozenset({"auto-round"})
"""Methods that only the package of that name can read."""


def stored_as(config: Mapping[str, Any]) -> Stored | None:
    """How the linear weights of a checkpoint are stored; None: as plain numbers.

    Args:
        config: in transformers' shape, of a model alone or of one with towers.
    """
    section = quantization_of(config)
    if not section or section.get("dequantize") or section.get("format") == "dense":
        return None
    method = str(
        section.get("quant_method") or ("bitsandbytes" if _is_bitsandbytes(section) else "a format without name")
    )
    weights = _weights_of(section)
    bits = _bits(method, section, weights)
    name = f"{method}, {bits:g} bits" if method not in ("fp8", "mxfp4", "mxfp8", "nvfp4", "fbgemm_fp8") else method
    return Stored(name, bits / 8 + _scales(method, bits, section, weights))


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of a config about quantised weights; empty without one."""
    if isinstance(own := config.get("quantization"), Mapping):  # mlx-lm's section, which names no method
        return {**own, "quant_method": "mlx"}
    for holder in (config, config.get("text_config") or {}):
        for name in ("quantization_config", "compression_config"):
            if section := holder.get(name):
                return dict(section)
    return {}


def turned_back(config: Mapping[str, Any]) -> bool:
    """Whether the weights are plain numbers in the memory of this machine, since nothing here computes with them as
    they are stored: what transformers will decide when it loads them."""
    section = quantization_of(config)
    if section.get("quant_method") not in TURNED_BACK:
        return False
    from transformers.quantizers.auto import AutoHfQuantizer

    with suppress(Exception):  # loading the weights reports missing packages
        quantizer = AutoHfQuantizer.from_config(dict(section), pre_quantized=True)
        quantizer.validate_environment()
        return bool(quantizer.quantization_config.dequantize)
    return False


def dequantize(config: Any, located: str) -> None:
    """Let transformers turn the weights of a model back into plain numbers on every machine.

    Raises:
        RecipeError: it does not do so with these.
    """
    section = quantization_of(config.to_dict())
    if (method := section.get("quant_method")) not in TURNED_BACK:
        raise RecipeError(
            "model.loader.dequantize",
            f"{located} is stored as {method or 'plain numbers'}, and only {', '.join(sorted(TURNED_BACK))} can be "
            "read as plain numbers",
            action="leave it out" if method is None else "leave it out, and train a low-rank adapter",
        )
    config.quantization_config = {**section, "dequantize": True}


def check_readable(reference: str, section: Mapping[str, Any]) -> None:
    """Checks that an installed library can read the stored weights.

    Raises:
        RecipeError: the weights are stored by a method over which nothing computes here; says what would.
    """
    method = str(section.get("quant_method"))
    if method == "mlx":
        raise RecipeError(
            "model", f"{reference} is stored by mlx-lm in fewer bits, which torch does not read",
            action="set backend: mlx, or name the model that it was made from",
        )  # fmt: skip
    if method in UNREAD and missing_packages((method,)):
        raise RecipeError(
            "model",
            f"{reference} is stored by {method}, whose files only its own package reads",
            action=f"{install_command(method)}, or take the model as gptq, awq, compressed-tensors or GGUF, or itself "
            "with quantization: int4",
        )


def _is_bitsandbytes(section: Mapping[str, Any]) -> bool:
    return bool(section.get("load_in_4bit") or section.get("load_in_8bit"))


def _weights_of(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of weights in a config of compressed-tensors: that of its first group."""
    groups = section.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    return weights if isinstance(weights, Mapping) else {}


def _bits(method: str, section: Mapping[str, Any], weights: Mapping[str, Any]) -> float:
    if _is_bitsandbytes(section):
        return 4 if section.get("load_in_4bit") else 8
    if method == "aqlm" and (vector := section.get("in_group_size", 8) * section.get("out_group_size", 1)):
        return float(section.get("num_codebooks", 1) * section.get("nbits_per_codebook", 16) / vector)
    of_hqq = (section.get("quant_config") or {}).get("weight_quant_params") or {}
    for stated in (weights.get("num_bits"), section.get("bits"), section.get("nbits"), of_hqq.get("nbits")):
        if isinstance(stated, int | float) and not isinstance(stated, bool) and 0 < stated <= 16:
            return stated
    for stated in (
        section.get("weights"),
        section.get("quant_type"),
    ):  # quanto's `int4`, torchao's `Int8WeightOnlyConfig`
        if match := re.search(r"(?:int|float|fp|nf|uint)(\d)(?!\d)", str(stated or "").lower()):
            return int(match[1])
    return BITS.get(method, 8)


def _scales(method: str, bits: float, section: Mapping[str, Any], weights: Mapping[str, Any]) -> float:
    """Bytes of scales and zero points for each weight."""
    if method in SCALES:
        return SCALES[method]
    if str(section.get("format", "")).startswith("mxfp4"):
        return SCALES["mxfp4"]
    if _is_bitsandbytes(section):
        nested = section.get("bnb_4bit_use_double_quant")
        return 0.0 if bits == 8 else (1 / 64 + 4 / (64 * 256)) if nested else 4 / 64
    of_hqq = (section.get("quant_config") or {}).get("weight_quant_params") or {}
    if isinstance(group := of_hqq.get("group_size"), int) and group > 0:
        return 4 / group
    group = weights.get("group_size") or section.get("group_size") or section.get("q_group_size")
    return (2 + bits / 8) / group if isinstance(group, int) and group > 0 else 0.0
