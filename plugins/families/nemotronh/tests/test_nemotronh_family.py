"""Facts against transformers' own models of the same configs."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from finetooth_kit import parametrize_with_checks
from finetooth_kit.families import SIZES, assert_facts
from finetooth_nemotronh.family import NemotronH

OWN = {**SIZES, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48}
KINDS: dict[str, dict[str, Any]] = {
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 4, "mamba_head_dim": 8,
        "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8, "head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24,
    },
}  # fmt: skip


@parametrize_with_checks("finetooth_nemotronh.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **{**OWN, **KINDS[kind]})
    facts, model = assert_facts(NemotronH(), config, rtol=1.3e-6, atol=1e-5)
    assert (facts.kv_heads, facts.ffn_size, facts.block, facts.renderer) == (2, 48, None, "nemotron3")
    queries = {m.weight.shape for path, m in model.named_modules() if path.endswith("q_proj")}
    assert queries == {(facts.heads * facts.head_dim, 32)}


@pytest.mark.parametrize(
    ("layers", "renderer"),
    [
        ({"layers_block_type": ["mamba", "attention", "moe"]}, "nemotron3"),
        ({"hybrid_override_pattern": "MEM*E"}, "nemotron3"),
        ({"hybrid_override_pattern": "M-M*-"}, "jinja"),  # Nemotron-H, Nemotron Nano 2
        ({"layers_block_type": ["mamba", "attention", "mlp"], "n_routed_experts": 8}, "jinja"),
    ],
)
def test_models_with_experts_speak_as_nemotron_3(layers: dict[str, Any], renderer: str) -> None:
    config = {**OWN, **KINDS["nemotron_h"], "model_type": "nemotron_h", "layers_block_type": None, **layers}
    assert NemotronH().facts(config).renderer == renderer
