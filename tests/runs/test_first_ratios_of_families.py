"""Zero mismatch of every family with a renderer: a tiny random model samples, and at the first step the ratio of every
token to what drew it is 1 exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import finetooth
import pytest
import transformers
from finetooth_hooks.testing.families import EXPERTS, LATENT, MAMBA, SIZES, tiny_model

pytestmark = pytest.mark.slow

TEXT: Mapping[str, Any] = {
    **SIZES, "hidden_size": 32, "vocab_size": 4096, "max_position_embeddings": 512, "head_dim": 8,
}  # fmt: skip
HYBRID: Mapping[str, Any] = {"num_hidden_layers": 3, "intermediate_size": 48}
ROUTED: Mapping[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR: Mapping[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MIXED: Mapping[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
FAMILIES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "smollm3": ("smollm3", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", ROUTED),
    "qwen3_5_text": ("qwen3_5_text", {**LINEAR, "num_hidden_layers": 4}),
    "mistral": ("mistral", {}),
    "gemma2": ("gemma2", {**MIXED, "final_logit_softcapping": 0.2}),
    "gemma3_text": ("gemma3_text", MIXED),
    "phi3": ("phi3", {"sliding_window": 8}),
    "glm4": ("glm4", {}),
    "glm4_moe": ("glm4_moe", {**EXPERTS, "first_k_dense_replace": 1}),
    "deepseek_v3, kimi_k2": ("deepseek_v3", {**LATENT, **EXPERTS, "first_k_dense_replace": 1, "head_dim": None}),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "cohere2": ("cohere2", {"layer_types": MIXED["layer_types"], "sliding_window": 8}),
    "granite": ("granite", {"logits_scaling": 3.0, "residual_multiplier": 0.2, "attention_multiplier": 0.1}),
    "olmo3": ("olmo3", MIXED),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "falcon_h1": ("falcon_h1", {**HYBRID, **MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5}),
    "nemotron_h": ("nemotron_h", {
        **HYBRID, "layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 4, "mamba_head_dim": 8,
        "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24,
    }),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_ratios_are_one(
    online_recipe: Callable[..., Any], tiny_llama: Path, tmp_path: Path, family: str,
    metrics: Callable[[Path], list[dict[str, float]]],
) -> None:  # fmt: skip
    """A batch in four steps, drawn at a temperature among some tokens; the sampler's own numbers are those of the
    trainer but for rounding."""
    model_type, own = FAMILIES[family]
    sizes = {name: value for name, value in {**TEXT, **own}.items() if value is not None}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tiny_model(config).save_pretrained(folder)
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 6, "num_iterations": 2, "mini_batches": 2}
    make = online_recipe({**method, "temperature": 0.9, "top_k": 20}, {"batch_size": 2, "max_steps": 2})
    given = make() | {"model": str(folder), "adapter": {"name": "lora", "rank": 2, "targets": "all-linear"}}
    assert finetooth.run(given).steps == 2
    first, _ = metrics(Path(given["output"]))
    assert first["ratio/min"] == first["ratio/max"] == 1.0
    assert first["sampling/sampling_logp_difference/max"] < 1e-4
