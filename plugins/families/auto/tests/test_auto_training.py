"""Tiny random models of families that have no code of their own train two steps, by their own chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetooth_hooks.testing.byte_tokenizer import CHAT_TEMPLATE
from finetooth_hooks.testing.templates import template_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe"], "num_hidden_layers": 3, "mamba_num_heads": 4,
        "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8, "head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24,
    },
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.2, "attention_multiplier": 0.1},
    "granitemoehybrid": {
        **MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 24, "num_local_experts": 4,
        "num_experts_per_tok": 2, "logits_scaling": 3.0,
    },
    "olmo2": {},
    "olmo3": {},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "head_dim": 8, "lm_head_multiplier": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_trains(tmp_path: Path, kind: str) -> None:
    finetooth = pytest.importorskip("finetooth")
    tokenizer = template_tokenizer(CHAT_TEMPLATE, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    sizes = {**SIZES, "vocab_size": tokenizer.vocab_size}
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **KINDS[kind]})
    models: Any = transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    models.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {"train": {"name": "tasks", "task": "family", "count": 4, "seed": 5}},
        "adapter": {"name": "lora", "rank": 4, "targets": "all-linear"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "train": {"batch_size": 4, "precision": "fp32", "max_length": 512, "max_steps": 2},
        "trackers": ["jsonl"],
        "output": str(tmp_path / "run"),
    }
    assert finetooth.run(recipe).status == "done"
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    first, second = (line["loss"] for line in lines if line["event"] == "step")
    assert 0 < second < first < 20
