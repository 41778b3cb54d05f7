"""Tiny random models of families that have no code of their own train two steps, by their own chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from finetooth_kit.byte_tokenizer import CHAT_TEMPLATE
from finetooth_kit.families import MAMBA, SIZES, train_two_steps
from finetooth_kit.templates import template_tokenizer

OWN = {**SIZES, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 512}
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
    "llama4_text": {"head_dim": 8, "num_local_experts": 2, "interleave_moe_layer_step": 1},
    "olmo2": {},
    "olmo3": {},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "head_dim": 8, "lm_head_multiplier": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_trains(tmp_path: Path, kind: str) -> None:
    finetooth = pytest.importorskip("finetooth")
    tokenizer = template_tokenizer(CHAT_TEMPLATE, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    config = transformers.AutoConfig.for_model(kind, **{**OWN, "vocab_size": tokenizer.vocab_size, **KINDS[kind]})
    first, second = train_two_steps(finetooth.run, tmp_path, config, tokenizer)
    assert second < first
