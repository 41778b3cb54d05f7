"""The config of a GGUF file's model as transformers writes it, from the file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from finetooth_hooks.errors import RecipeError

from finetooth_modelfiles.gguf.architectures import (
    FREQUENCIES,
    architecture_of,
    layers_ahead,
)
from finetooth_modelfiles.gguf.container import Container
from finetooth_modelfiles.gguf.layouts import Architecture, Gemma, value_of
from finetooth_modelfiles.gguf.special_tokens import special_tokens

LONG = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Settings of Llama 3.1's rotary embedding that no file states and that all of its models have."""

YARN: Mapping[str, Any] = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "attention_factor": None}
"""Settings of YaRN that no file here states, as llama.cpp and transformers have them if nobody says otherwise."""
LOG_SHARE = 0.1
"""YaRN's mscale times this is what a file states."""


def config_values(container: Container) -> dict[str, Any]:
    """A file's config as transformers would write it to `config.json`.

    Every value the file states is set, also where it equals the class's default: a default is one checkpoint's value.

    Raises:
        RecipeError: a needed key is missing, or the rotary embedding is of a kind that is not understood.
    """
    architecture = architecture_of(container)
    heads = _metadata(container, "attention.head_count")
    hidden = _metadata(container, "embedding_length")
    head_width = container.metadata.get(f"{container.architecture}.{architecture.width}", hidden // heads)
    kv_heads = container.metadata.get(f"{container.architecture}.attention.head_count_kv", heads)
    by_layer = kv_heads if isinstance(kv_heads, list) else [kv_heads] * _metadata(container, "block_count")
    embedding = container.tensors.get("token_embd.weight")
    if embedding is None:
        raise RecipeError(
            "model", f"{container.path} holds no token embedding", action="a vocabulary-only file has no weights"
        )
    special = special_tokens(container)
    values: dict[str, Any] = {
        "model_type": architecture.model_type,
        "architectures": [architecture.model_class],
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": _metadata(container, "feed_forward_length"),
        "num_hidden_layers": _metadata(container, "block_count") - layers_ahead(container),
        "num_attention_heads": heads,
        "num_key_value_heads": max(by_layer) if architecture.kinds else kv_heads,
        "head_dim": head_width,
        "max_position_embeddings": _metadata(container, "context_length"),
        architecture.epsilon[1]: _decimal(_metadata(container, architecture.epsilon[0])),
        "rope_parameters": _rope(container, head_width, architecture),
        "tie_word_embeddings": "output.weight" not in container.tensors,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
    }
    for setting, tensor in architecture.optional.items():
        values[setting] = f"blk.0.{tensor}" in container.tensors
    if architecture.kinds:
        values["layer_types"] = [architecture.kinds[count > 0] for count in by_layer]
    for key, setting in architecture.keys.items():
        if setting in architecture.lacking and f"{container.architecture}.{key}" not in container.metadata:
            values[setting] = None
            continue
        stated = _metadata(container, key)
        values[setting] = _decimal(stated) if isinstance(stated, float) else stated
    for setting, value in architecture.read.items():
        values[setting] = value_of(value, values)
    values |= {setting: value_of(value, values) for setting, value in architecture.fixed.items()}
    if architecture.ahead:
        values["num_nextn_predict_layers"] = 0
    if architecture.capped:
        values["sliding_window"] = None
    return values | (_gemma_values(container, architecture.gemma, values) if architecture.gemma else {})


def _gemma_values(container: Container, gemma: Gemma, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the config of a Gemma model has beyond that of a Llama model."""
    facts, prefix = container.metadata, container.architecture
    window = int(facts.get(f"{prefix}.attention.sliding_window", gemma.window))
    layers, rope = values["num_hidden_layers"], values["rope_parameters"]
    pattern = facts.get(f"{prefix}.attention.sliding_window_pattern", gemma.period)
    if isinstance(pattern, list):
        types = ["sliding_attention" if windowed else "full_attention" for windowed in pattern]
    else:
        types = replace(gemma, period=pattern).layer_types(layers)
    if gemma.local_base:
        local = _decimal(facts.get(f"{prefix}.rope.freq_base_swa", gemma.local_base))
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    return {
        "rope_parameters": rope,
        "sliding_window": window or values["max_position_embeddings"],
        "layer_types": types if window else ["full_attention"] * layers,
        "query_pre_attn_scalar": gemma.query_scalar(
            layers, values["hidden_size"], values["num_attention_heads"], values["head_dim"]
        ),
        "attn_logit_softcapping": facts.get(f"{prefix}.attn_logit_softcapping", gemma.attention_cap),
        "final_logit_softcapping": facts.get(f"{prefix}.final_logit_softcapping", gemma.final_cap) or None,
    }


def _metadata(container: Container, key: str) -> Any:
    full = f"{container.architecture}.{key}"
    if full not in container.metadata:
        raise RecipeError("model", f"{container.path} does not state {full}", action="fetch or convert the file again")
    value = container.metadata[full]
    if isinstance(value, list):
        raise RecipeError(
            "model",
            f"{container.path} states {full} layer by layer, which is not supported",
            action="load this model from its original folder or hub id",
        )
    return value


def _decimal(single: float) -> float:
    """The short decimal a float32 was made from: 9.999999747378752e-06 -> 1e-05; the same number as float32."""
    return float(str(np.float32(single)))


def frequency_factors(rope: Mapping[str, Any], head_width: int) -> npt.NDArray[np.float32]:
    """What Llama 3.1's rotary embedding divides each frequency by: a part that turns slowly by `factor`, one that turns
    fast by 1, and what is between by something between."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = rope["original_max_position_embeddings"] / (2 * np.pi) / (
        float(rope["rope_theta"]) ** (np.arange(0, head_width, 2) / head_width)
    )  # fmt: skip
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: npt.NDArray[np.float32] = (1 / ((1 - share) / float(rope["factor"]) + share)).astype(np.float32)
    return factors


def _long_rope(container: Container, theta: float, head_width: int) -> dict[str, Any] | None:
    """Llama 3.1's settings, if a file's factors are what they make."""
    entry = container.tensors[FREQUENCIES]
    stated = container.blocks(entry).reshape(-1).view(np.float32)
    key = f"{container.architecture}.rope.scaling.original_context_length"
    rope = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": _decimal(stated.max()),
        "original_max_position_embeddings": container.metadata.get(key, 8192),
        **LONG,
    }
    same = entry.ggml_type.name == "F32" and len(stated) == head_width // 2
    return rope if same and np.allclose(stated, frequency_factors(rope, head_width), rtol=1e-5) else None


def _yarn(container: Container, theta: float) -> dict[str, Any] | None:
    """DeepSeek's YaRN, if a file states it whole."""
    stated: list[Any] = [
        container.metadata.get(f"{container.architecture}.rope.scaling.{key}")
        for key in ("factor", "original_context_length", "yarn_log_multiplier")
    ]
    if not all(stated):
        return None
    mscale = _decimal(stated[2] / LOG_SHARE)
    return {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": _decimal(stated[0]),
        "original_max_position_embeddings": stated[1],
        **{key: value for key, value in YARN.items() if value is not None},
        "mscale": mscale,
        "mscale_all_dim": mscale,
    }


def _rope(container: Container, head_width: int, architecture: Architecture) -> dict[str, Any]:
    partial = architecture.partial
    prefix = f"{container.architecture}.rope"
    theta = _decimal(container.metadata.get(f"{prefix}.freq_base", 10000.0))
    kind = container.metadata.get(f"{prefix}.scaling.type", "none")
    rotated = container.metadata.get(f"{prefix}.dimension_count", head_width)
    if kind == "yarn" and architecture.yarn and (yarn := _yarn(container, theta)):
        return yarn
    plain = rotated == head_width and kind == "none" and architecture.long and FREQUENCIES in container.tensors
    if plain and (long := _long_rope(container, theta, head_width)):
        return long
    factors = container.tensors.keys() & {FREQUENCIES, "rope_factors_long.weight"}
    if (rotated != head_width and not partial) or kind not in ("none", "linear") or factors:
        what = "per-frequency factors" if factors else f"{kind} scaling"
        what = f"only {rotated} of {head_width} dimensions rotated" if rotated != head_width and not partial else what
        raise RecipeError(
            "model",
            f"{container.path} has a rotary embedding with {what}, which is not supported",
            action="load this model from its original folder or hub id",
        )
    turned = {"partial_rotary_factor": rotated / head_width} if partial else {}
    if kind == "linear":
        factor = _decimal(container.metadata.get(f"{prefix}.scaling.factor", 1.0))
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor, **turned}
    return {"rope_type": "default", "rope_theta": theta, **turned}
