"""Facts of many families, found by looking, against what their models compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from finetooth_auto.family import Auto
from finetooth_hooks import RecipeError
from finetooth_kit import parametrize_with_checks
from finetooth_kit.families import SIZES, assert_logits, tiny_model
from transformers.pytorch_utils import Conv1D

OWN = {**SIZES, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48}
PLAIN = {key: value for key, value in OWN.items() if key not in ("num_key_value_heads", "intermediate_size")}
OLD = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 97, "n_positions": 64}
QKVO = {"q_proj", "k_proj", "v_proj", "o_proj"}
GATED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

MODELS: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "mistral": (OWN, {"q_proj", "k_proj", "v_proj", "o_proj"}, GATED),
    "gemma2": (
        {**OWN, "head_dim": 8, "final_logit_softcapping": 0.5},
        {"q_proj", "k_proj", "v_proj", "o_proj"},
        GATED,
    ),
    "recurrent_gemma": (
        {**OWN, "intermediate_size": 96, "lru_width": 32, "logits_soft_cap": 0.5},
        QKVO,
        GATED | {"linear_x", "linear_y", "linear_out"},
    ),
    "gemma3_text": ({**OWN, "head_dim": 8}, {"q_proj", "k_proj", "v_proj", "o_proj"}, GATED),
    "phi": (OWN, {"q_proj", "k_proj", "v_proj", "dense"}, {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}),
    "phi3": (OWN, {"o_proj", "qkv_proj"}, {"o_proj", "qkv_proj", "gate_up_proj", "down_proj"}),
    "cohere": ({**OWN, "logit_scale": 0.3}, {"q_proj", "k_proj", "v_proj", "o_proj"}, GATED),
    "granite": ({**OWN, "logits_scaling": 3.0}, {"q_proj", "k_proj", "v_proj", "o_proj"}, GATED),
    "granitemoehybrid": (
        {
            **OWN,
            "layer_types": ["mamba", "attention", "mamba"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
            "shared_intermediate_size": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "logits_scaling": 3.0,
            "residual_multiplier": 0.2,
        },
        QKVO,
        QKVO | {"in_proj", "input_linear", "output_linear"},
    ),
    "nemotron_h": (
        {
            **OWN,
            "layers_block_type": ["mamba", "attention", "moe"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
        },
        QKVO,
        QKVO | {"in_proj", "up_proj", "down_proj"},
    ),
    "falcon_h1": (
        {
            **OWN,
            "head_dim": 8,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.5,
        },
        QKVO,
        GATED | {"in_proj"},
    ),
    "hyperclovax": ({**OWN, "logits_scaling": 3.0}, QKVO, GATED),
    "olmo2": (OWN, QKVO, GATED),
    "olmo3": (OWN, QKVO, GATED),
    "llama4_text": (
        {**OWN, "head_dim": 8, "num_local_experts": 2, "interleave_moe_layer_step": 1},
        QKVO,
        GATED,
    ),
    "smollm3": (OWN, {"q_proj", "k_proj", "v_proj", "o_proj"}, GATED),
    "gpt2": (OLD, {"c_attn", "attn.c_proj"}, {"c_attn", "c_proj", "c_fc"}),
    "gptj": (
        {**OLD, "rotary_dim": 4},
        {"q_proj", "k_proj", "v_proj", "out_proj"},
        {"q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"},
    ),
    "gpt_neox": (
        {**PLAIN, "intermediate_size": 48},
        {"query_key_value", "dense"},
        {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    ),
    "falcon": (PLAIN, {"query_key_value", "dense"}, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    "opt": (
        {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32},
        {"q_proj", "k_proj", "v_proj", "out_proj"},
        {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    ),
}
MAMBA = {"granitemoehybrid", "nemotron_h", "falcon_h1"}


@parametrize_with_checks("finetooth_auto.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])
def test_a_model_without_attention_has_no_heads_that_matter(kind: str) -> None:
    """And adapters leave what its own code computes by the weight alone: `dt_proj`."""
    sizes = {"vocab_size": 97, "hidden_size": 128, "num_hidden_layers": 2, "state_size": 8}
    facts = Auto().facts(transformers.AutoConfig.for_model(kind, **sizes).to_dict())
    assert (facts.heads, facts.head_dim, facts.attention_targets) == (2, 64, ())
    assert (facts.linear_targets, set(facts.untargeted)) == (("in_proj", "x_proj"), {"out_proj", "dt_proj"})


@pytest.mark.parametrize("kind", MODELS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    sizes, attention, linear = MODELS[kind]
    config = transformers.AutoConfig.for_model(kind, **sizes)
    model = tiny_model(config)
    facts = Auto().facts(config.to_dict())
    assert (set(facts.attention_targets), set(facts.linear_targets)) == (attention, linear)
    router = ("router",) if kind == "llama4_text" else ()  # it gives two values
    assert facts.untargeted == (("out_proj",) if kind in MAMBA else router)
    assert (facts.layers, facts.hidden_size, facts.vocab_size, facts.heads) == (3, 32, 97, 4)
    layers = model.get_submodule(facts.layer_path)
    assert isinstance(layers, torch.nn.ModuleList) and len(layers) == 3
    chosen = [
        path
        for path, module in layers.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and any(path == name or path.endswith(f".{name}") for name in facts.attention_targets)
    ]
    # nothing outside attention bears these names (Nemotron-H calls all of it mixers, RecurrentGemma temporal blocks)
    assert chosen and (kind in ("nemotron_h", "recurrent_gemma") or all("att" in path for path in chosen)), chosen
    assert_logits(facts, model, atol=1e-7)
    assert facts.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def test_scale_and_cap_are_seen() -> None:
    """Without these the comparison above could not tell."""
    config = transformers.AutoConfig.for_model("gemma2", **MODELS["gemma2"][0])
    assert Auto().facts(config.to_dict()).head.softcap == 0.5
    config = transformers.AutoConfig.for_model("granite", **MODELS["granite"][0])
    assert Auto().facts(config.to_dict()).head.scale == pytest.approx(1 / 3)
    config = transformers.AutoConfig.for_model("falcon_h1", **MODELS["falcon_h1"][0])
    assert Auto().facts(config.to_dict()).head.scale == 0.5


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"model_type": "t5"}, "transformers builds no causal language model of type 't5'"),
        ({"model_type": "no_such_model"}, "of type 'no_such_model'"),
        ({}, "of type ''"),
    ],
)
def test_what_it_does_not_understand_is_an_error(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as error:
        Auto().facts(config)
    assert str(error.value).startswith("model.family: ") and "\n" not in str(error.value)


def test_no_memory_is_taken() -> None:
    """A model far beyond this machine's memory: 70 billion parameters."""
    config = transformers.AutoConfig.for_model(
        "mistral", hidden_size=8192, num_hidden_layers=80, intermediate_size=28672
    )
    facts = Auto().facts(config.to_dict())
    assert (facts.layers, facts.hidden_size) == (80, 8192)
