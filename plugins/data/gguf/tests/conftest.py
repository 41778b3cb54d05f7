"""GGUF files for the tests: tiny ones written with the gguf package's writer, and SmolLM2's out of its package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks.errors import RecipeError
from finetooth_modelfiles.gguf import container
from finetooth_modelfiles.gguf.container import Container
from finetooth_modelfiles.gguf.reference import find
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from transformers import PreTrainedConfig, PreTrainedModel

# llama.cpp's names of the parameters, spelled out on purpose instead of taken from the code under test
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_NAMES = {
    **NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
PHI_NAMES = {**NAMES, "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}

GLM_NAMES = {
    **NAMES,
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "mlp.gate_up_proj": "ffn_up",
}
MIXTURE_NAMES = {
    **NAMES,
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
GLM_MOE_NAMES = {
    **MIXTURE_NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.gate.e_score_correction": "exp_probs_b",
}
ALL_NAMES = {
    "gemma2": GEMMA_NAMES,
    "gemma3": GEMMA_NAMES,
    "phi3": PHI_NAMES,
    "glm4": GLM_NAMES,
    "qwen3moe": MIXTURE_NAMES,
    "glm4moe": GLM_MOE_NAMES,
}


def gguf_name(parameter: str, architecture: str) -> str:
    names = ALL_NAMES.get(architecture, NAMES)
    module, kind = parameter.replace("correction_bias", "correction.bias").rsplit(".", 1)
    if module.startswith("model.layers."):
        _, _, layer, inner = module.split(".", 3)
        return f"blk.{layer}.{names[inner]}.{kind}"
    return f"{names[module]}.{kind}"


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Row (head, half, pair) goes to (head, pair, half), one row at a time."""
    out = np.empty_like(weight)
    width = len(weight) // heads
    for head in range(heads):
        for half in range(2):
            for pair in range(width // 2):
                out[head * width + 2 * pair + half] = weight[head * width + half * (width // 2) + pair]
    return out


def write_gguf(
    path: Path,
    architecture: str,
    config: PreTrainedConfig,
    model: PreTrainedModel | None,
    stored: GGMLQuantizationType = GGMLQuantizationType.F32,
    metadata: Mapping[str, int | float | str] | None = None,
    vocabulary: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as a converter would; `metadata` overrides keys of the architecture."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if getattr(config, "head_dim", None) and config.head_dim != config.hidden_size // config.num_attention_heads:
        writer.add_key_length(config.head_dim)
    for key, value in (metadata or {}).items():
        writer.add_key_value(f"{architecture}.{key}", value, _value_type(value))
    words = vocabulary or {"tokens": [f"t{i}" for i in range(config.vocab_size)], "bos": 1, "eos": 2}
    writer.add_token_list(words["tokens"])
    writer.add_bos_token_id(words["bos"])
    writer.add_eos_token_id(words["eos"])
    if "types" in words:
        writer.add_token_types(words["types"])
        writer.add_tokenizer_model(words.get("model", "gpt2"))
        if "scores" in words:
            writer.add_token_scores(words["scores"])
            writer.add_unk_token_id(words["unk"])
        else:
            writer.add_tokenizer_pre(words["pre"])
            writer.add_token_merges(words["merges"])
    if "pad" in words:
        writer.add_pad_token_id(words["pad"])
    if "add_bos" in words:
        writer.add_add_bos_token(words["add_bos"])
    for name, parameter in single_stacks(model.state_dict()).items() if model is not None else ():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = parameter.detach().float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = interleave(values, heads)
        if architecture.startswith("gemma") and "norm" in name:
            values = values + 1
        if stored != GGMLQuantizationType.F32 and values.ndim > 1:
            writer.add_tensor(gguf_name(name, architecture), quantize(values, stored), raw_dtype=stored)
        else:
            writer.add_tensor(gguf_name(name, architecture), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def single_stacks(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gates of experts apart from what they gate, which transformers holds as one weight with the gates' rows first."""
    split: dict[str, torch.Tensor] = {}
    for name, values in state.items():
        if name.endswith("experts.gate_up_proj"):
            gate, up = values.split(values.shape[1] // 2, dim=1)
            split |= {name.replace("gate_up", "gate") + ".weight": gate, name.replace("gate_up", "up") + ".weight": up}
        else:
            split[f"{name}.weight" if name.endswith("experts.down_proj") else name] = values
    return split


def _value_type(value: Any) -> Any:
    from gguf import GGUFValueType

    return {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }[type(value)]


@pytest.fixture
def writer(tmp_path: Path) -> Callable[..., Path]:
    """`write_gguf` into the test's own folder, with a name that counts up."""

    def write(*args: Any, **kwargs: Any) -> Path:
        return write_gguf(tmp_path / f"model-{len(list(tmp_path.glob('*.gguf')))}.gguf", *args, **kwargs)

    return write


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The file of `smollm2-135m`."""
    try:
        return find("smollm2-135m").path
    except RecipeError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Container:
    """Its header."""
    return container.read(smollm2_path)


@pytest.fixture(scope="session")
def smollm2_model(smollm2: Container) -> PreTrainedModel:
    """Its model in float32."""
    from finetooth_gguf.weights import build_config, build_model

    return build_model(smollm2, build_config(smollm2), torch.float32)
