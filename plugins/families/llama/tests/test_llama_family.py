"""Facts against transformers' own model of the same config."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_kit import parametrize_with_checks
from finetooth_kit.families import SIZES, assert_facts, assert_widths, linear_names
from finetooth_llama.family import Llama
from transformers import LlamaConfig

OWN = {**SIZES, "num_hidden_layers": 3}
BARE = {key: value for key, value in OWN.items() if not key.endswith("_token_id")}
"""As from a GGUF file, whose config states no token ids."""


@parametrize_with_checks("finetooth_llama.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", [{}, {"head_dim": 10}])
def test_facts_are_those_of_the_model(tied: bool, heads: dict[str, int]) -> None:
    config = LlamaConfig(**{**OWN, **heads, "tie_word_embeddings": tied})
    facts, model = assert_facts(Llama(), config)
    layer = model.get_submodule(facts.layer_path)[0]
    assert_widths(facts, layer)
    assert linear_names(layer) == set(facts.linear_targets)
    assert linear_names(layer.self_attn) == set(facts.attention_targets)
    assert facts.tied == tied


def test_old_configs_without_grouped_heads() -> None:
    """Llama 1's config.json states no num_key_value_heads."""
    values = {key: value for key, value in OWN.items() if key != "num_key_value_heads"}
    facts = Llama().facts({**values, "model_type": "llama"})
    assert (facts.kv_heads, facts.head_dim, facts.tied) == (4, 6, False)


@pytest.mark.parametrize(
    ("config", "renderer"),
    [
        ({"vocab_size": 49152, "eos_token_id": 2, "bos_token_id": 1}, "chatml"),  # SmolLM2-Instruct
        ({"vocab_size": 49152}, "chatml"),  # the same from a GGUF file, whose config states no token ids
        ({"vocab_size": 49152, "eos_token_id": 0, "bos_token_id": 0}, "jinja"),  # code models of this size
        ({"vocab_size": 128256, "eos_token_id": 128009}, {"name": "llama3", "dated": False}),
        ({"vocab_size": 128256, "rope_scaling": {"rope_type": "llama3"}}, {"name": "llama3", "dated": True}),
        ({"vocab_size": 128256, "rope_parameters": {"rope_type": "llama3"}}, {"name": "llama3", "dated": True}),
        ({"vocab_size": 128256, "rope_parameters": {"rope_type": "default"}}, {"name": "llama3", "dated": False}),
        ({"vocab_size": 32000, "eos_token_id": 2}, "jinja"),  # Llama 2 and its many children
        ({"vocab_size": 128256, "model_type": "smollm3"}, "smollm3"),
    ],
)
def test_the_renderer_is_told_by_the_vocabulary(config: dict[str, Any], renderer: Any) -> None:
    assert Llama().facts({**BARE, **config}).renderer == renderer
