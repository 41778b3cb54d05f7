"""Experts that are held as one weight: peft takes names of projections for theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import RecipeError
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

CURE = r"\(set adapter\.targets: attention, or name modules such as q_proj, k_proj, v_proj, o_proj\)$"


def model() -> Any:
    """One layer without experts, one with."""
    config = Qwen3MoeConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[0], max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3MoeForCausalLM(config)


def apply(tiny: Any, targets: Any) -> Any:
    facts = replace(tiny().facts, block=None)
    return LoraAdapter(LoraOptions(rank=2, targets=targets)).apply(model(), facts, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        (["gate_proj"], "peft refuses these modules: .*gate_proj without also targeting up_proj"),
        ("all-linear", "peft takes (gate|up|down)_proj for the experts, .* leaves model.layers.0.mlp"),
        (["down_proj", "q_proj"], "peft takes down_proj for the experts, .* leaves model.layers.0.mlp.down_proj alone"),
    ],
)
def test_projections_that_peft_takes_for_experts_are_refused_with_what_to_do(
    tiny: Any, targets: Any, problem: str
) -> None:
    with pytest.raises(RecipeError, match=rf"^adapter\.targets: {problem}.*{CURE}") as told:
        apply(tiny, targets)
    assert "\n" not in str(told.value)


def test_what_the_refusal_proposes_works(tiny: Any) -> None:
    for targets in ("attention", ["q_proj", "k_proj"]):
        adapted = apply(tiny, targets)
        names = {name.split(".lora_")[0] for name, p in adapted.named_parameters() if p.requires_grad}
        kinds = {name.rpartition(".")[2] for name in names}
        assert kinds == ({"q_proj", "k_proj", "v_proj", "o_proj"} if targets == "attention" else {"q_proj", "k_proj"})
