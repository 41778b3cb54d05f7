"""Facts against transformers' own models of the same configs."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from finetooth_kit import parametrize_with_checks
from finetooth_kit.families import SIZES, assert_facts
from finetooth_lfm2.family import LFM2

LAYERS = {"layer_types": ["conv", "full_attention"]}
EXPERTS = {"num_dense_layers": 1, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@parametrize_with_checks("finetooth_lfm2.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("lfm2", {}),
        ("lfm2", {"block_auto_adjust_ff_dim": False, "tie_word_embeddings": False}),
        ("lfm2", {"block_ffn_dim_multiplier": 1.5, "block_multiple_of": 32}),
        ("lfm2_moe", EXPERTS),
    ],
)
def test_facts_are_those_of_the_model(kind: str, own: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **LAYERS, **own})
    facts, model = assert_facts(LFM2(), config, rtol=1.3e-6, atol=1e-5)
    assert (facts.kv_heads, facts.block, facts.renderer) == (2, None, "lfm2")
    attention = model.model.layers[1].self_attn
    assert attention.k_proj.weight.shape == (facts.kv_heads * facts.head_dim, facts.hidden_size)
    assert model.model.layers[0].feed_forward.w1.weight.shape == (facts.ffn_size, facts.hidden_size)
